"""The wheel, installed elsewhere, trains from its own configurations and from a file."""

import shutil
import subprocess
import sys

import pytest

import implicit_reasoning


@pytest.mark.slow
def test_the_installed_wheel_trains_and_reports(tmp_path):
    def run(*command):
        subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)

    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    shutil.copy("configs/composition.py", tmp_path / "mine.py")
    assert wheel.name.split("-")[1] == implicit_reasoning.__version__
    shutil.copy("constraints.txt", tmp_path)
    run(sys.executable, "-m", "venv", "venv")
    run("venv/bin/pip", "install", "--quiet", "-c", "constraints.txt", wheel)
    for name, config in (("shipped", "composition:pocket"), ("own", "mine.py:pocket")):
        workdir = f"--workdir={name}"
        run("venv/bin/implicit_reasoning", "train", f"--config={config}", workdir, "--stop_at=10")
    run("venv/bin/implicit_reasoning", "report", workdir)
    assert (tmp_path / "own" / "report" / "index.html").exists()
    run("venv/bin/implicit_reasoning", "world", "--config=shadow:desk", "--out=world")
