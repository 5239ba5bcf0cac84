"""The wheel, installed outside the checkout, works."""

from __future__ import annotations

import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip"]


@pytest.mark.slow
def test_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    offline = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*PIP, "wheel", "-q", *offline, "-w", str(tmp_path / "dist"), str(ROOT)], check=True)
    [wheel] = (tmp_path / "dist").glob("slm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"slm/py.typed", "slm/conf/model/quickstart.yaml", "slm/recipes/quickstart.yaml"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "slm",
        "slm_kernels",
    }  # no conf/ or tests/ at the top

    venv.create(tmp_path / "env", with_pip=False)
    bin_dir = tmp_path / "env" / "bin"
    python = str(bin_dir / "python")
    subprocess.run([*PIP, "--python", python, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "env" / "lib" / version / "site-packages"
    # The dependencies are taken from this environment (torch alone is 200 MB); slm itself must come from the wheel.
    # A path file adds the directory without executing the editable install's own path file.
    (packages / "dependencies.pth").write_text(site.getsitepackages()[0] + "\n")

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(python, "-c", "import slm, slm_kernels; print(slm.__file__, slm_kernels.__file__)")
    assert where.count(str(packages)) == 2, where
    slm = str(bin_dir / "slm")
    assert "Train a recipe" in run(slm, "train", "quickstart", "--help")
    assert "quickstart" in run(slm, "model", "list")
    small = ["tokenizer=bytes", "data.source=synthetic", "data.seq_len=64", "train.batch_tokens=256", "model.layers=1"]
    out = run(slm, "train", "quickstart", "train.budget.steps=5", "train.precision=fp32", *small)
    assert "step 5/5" in out
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
    assert (tmp_path / "runs" / "quickstart" / "hf" / "model.safetensors").exists()
