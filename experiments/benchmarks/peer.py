"""Execution of a different package in a process with its own environment, by lines of text."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

_TRIALS = 4
_ASLEEP = {"OMP_WAIT_POLICY": "passive"}


class Peer:
    """A script of this folder that runs in a second Python environment, as `SCRIPT FOLDER THREADS`.

    THREADS is the number of cores of this process. The script writes one line of JSON when it is
    ready. After that, it answers every line of standard input with one line of JSON.
    """

    def __init__(self, python: str, script: str, folder: Path, **environment: str):
        threads = _cores()
        self._script = script
        command = [os.path.expanduser(python), str(Path(__file__).with_name(script))]
        self._process = subprocess.Popen(
            [*command, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            text=True,
        )
        self.versions = self.listen() | environment

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        self.tell(line)
        return self.listen()

    def tell(self, line: str) -> None:
        """Send a line; `listen` waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Close the input and wait for the end of the process."""
        self._process.communicate()

    def listen(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._script} ended with {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said


def _cores() -> int:
    """Return the number of cores that this process may use; requires only the standard library."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_fastest(python: str, script: str, folder: Path, line: str) -> Peer:
    """Start a script with two settings of PyTorch's threads, and keep the faster process.

    The answers to `line` are timed several times, in turns. PyTorch's threads use active waiting by
    default, which is fastest on an idle machine. On a busy machine, passive waiting (sleeping
    threads) is faster, because active waiting can delay a product of one millisecond to a hundred
    milliseconds.
    """
    peers = [Peer(python, script, folder, **how) for how in ({}, _ASLEEP)]
    rounds = [[peer.ask(line)["seconds"] for peer in peers] for _ in range(_TRIALS)]
    best = [min(seconds) for seconds in zip(*rounds, strict=True)]
    fast, slow = (peers[at] for at in sorted(range(2), key=lambda at: best[at]))
    slow.close()
    return fast
