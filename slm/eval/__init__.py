"""Quality: bits per byte on held-out text, and what ordinary compressors reach on the same bytes."""
