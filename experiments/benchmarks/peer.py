"""Another package, in a process and an environment of its own, that works when it is told to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

_TRIALS = 4
_ASLEEP = {"OMP_WAIT_POLICY": "passive"}


class Peer:
    """A script of this folder under another Python, started as `SCRIPT FOLDER THREADS`.

    It gets as many threads as this process has cores. It says a line of JSON when it is ready, then
    takes lines on its standard input and answers each with a line of JSON.
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
        """Send a line, wait for the answer."""
        self.tell(line)
        return self.listen()

    def tell(self, line: str) -> None:
        """Send a line; `listen` waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()

    def listen(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._script} ended with {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said


def _cores() -> int:
    """How many this process may use. This file needs no package but Python's own."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_fastest(python: str, script: str, folder: Path, line: str) -> Peer:
    """Start it in two ways, ask both for `line` some times in turn, keep the one of the best time.

    PyTorch's threads spin while they wait for each other. Alone on a machine that is best; beside
    other work a product that takes a millisecond takes a hundred, and threads must sleep instead.
    """
    peers = [Peer(python, script, folder, **how) for how in ({}, _ASLEEP)]
    rounds = [[peer.ask(line)["seconds"] for peer in peers] for _ in range(_TRIALS)]
    best = [min(seconds) for seconds in zip(*rounds, strict=True)]
    fast, slow = (peers[at] for at in sorted(range(2), key=lambda at: best[at]))
    slow.close()
    return fast
