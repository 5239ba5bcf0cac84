"""The wheel, installed outside the checkout, works."""

from __future__ import annotations

import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    [wheel] = (tmp_path / "dist").glob("slm-*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "env" / "lib" / version / "site-packages"
    target = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), str(wheel)]
    subprocess.run(target, check=True)
    # The dependencies are taken from this environment (torch alone is 200 MB); slm itself must come from the wheel.
    # A path file would also execute the editable install's import hook, hence the plain directory at the end.
    (packages / "dependencies.pth").write_text(site.getsitepackages()[0] + "\n")

    def run(*arguments: str) -> str:
        done = subprocess.run([python, "-m", "slm", *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import slm, slm_kernels; print(slm.__file__, slm_kernels.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert where.stdout.count(str(packages)) == 2, where.stdout + where.stderr
    assert "Train a recipe" in run("train", "quickstart", "--help")
    assert "quickstart" in run("model", "list")
    small = [
        "tokenizer=bytes",
        "data.source=synthetic",
        "data.seq_len=64",
        "train.batch_tokens=256",
        "train.precision=fp32",
    ]
    out = run("train", "quickstart", "train.budget.steps=5", "model.layers=1", *small)
    assert "step 5/5" in out
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
    assert (tmp_path / "runs" / "quickstart" / "hf" / "model.safetensors").exists()
