"""The wheel, installed somewhere else, trains from a configuration given by its path."""

import shutil
import subprocess
import sys

import pytest


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
    shutil.copy("constraints.txt", tmp_path)
    run(sys.executable, "-m", "venv", "venv")
    run("venv/bin/pip", "install", "--quiet", "-c", "constraints.txt", wheel)
    workdir = "--workdir=run"
    run("venv/bin/implicit_reasoning", "train", "--config=mine.py:pocket", workdir, "--stop_at=10")
    run("venv/bin/implicit_reasoning", "report", workdir)
    assert (tmp_path / "run" / "report" / "index.html").exists()
