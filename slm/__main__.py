"""``python -m slm``."""

from slm.cli.main import main

main()
