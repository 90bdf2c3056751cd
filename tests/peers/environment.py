"""Runs a script in the environment of a peer; inputs and outputs are files.

A peer is a file in `requirements/`; `make test-peers` builds `.peers/<its name>` from it.
"""

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run_in(peer, script, *arguments):
    """Run `scripts/<script>.py` with the peer's Python; its output on failure is the error."""
    return run_file(peer, HERE / "scripts" / f"{script}.py", *arguments)


def run_file(peer, file, *arguments, folder=None):
    """Run a file with the peer's Python, in a folder or in the present one."""
    python = ROOT / ".peers" / peer / "bin" / "python"
    # The test is not skipped, because a check that silently does not run shows nothing.
    assert python.exists(), f"{python} is missing; `make test-peers` builds it"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # One thread is used. The models are so small that several threads mainly wait for each other,
    # which takes minutes on a busy machine.
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, file, *arguments],
        cwd=folder,
        env={**clean, **fixed},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
