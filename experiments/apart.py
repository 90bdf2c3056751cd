"""Parallel execution of the commands of a study, with a share of the cores for each command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue

import numpy as np
from tqdm import tqdm

from implicit_reasoning.__main__ import main as command_line
from implicit_reasoning.runtime.machine import available_cores, pin_to_cores

FOLDER = Path(__file__).resolve().parent

Command = Callable[[Sequence[str]], None]
"""Runs a command of the package, `["train", "--config=...", ...]`, and waits for it."""


def run_apart(jobs: Mapping[str, Callable[[Command], None]], at_once: int, compiled: Path) -> None:
    """Run jobs in parallel, each with a share of the cores that this process may use.

    The cores are divided, because two processes that both use all cores are slower in parallel than
    one after another. If a job fails, or after Ctrl-C or SIGTERM, all remaining jobs are
    terminated. The runs of these jobs save their states, and resume when the study is started
    again.

    Args:
      jobs: jobs by name; a job is called with a function that runs commands.
      at_once: number of parallel jobs; 0 runs all commands in this process, in order.
      compiled: folder of the compilation cache, which the seeds of an arm share.

    Raises:
      RuntimeError: a command failed; the message contains its standard error.
    """
    if not jobs:
        return
    if at_once == 0:
        for job in jobs.values():
            job(_run_here)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    free: Queue[list[int]] = Queue()
    own = available_cores()
    for part in np.array_split(own, min(at_once, len(own))):
        free.put(part.tolist())
    children: list[subprocess.Popen[str]] = []

    def command(arguments: Sequence[str]) -> None:
        _run([sys.executable, "-m", "implicit_reasoning", *arguments], compiled, children)

    def on_its_cores(job: Callable[[Command], None]) -> None:
        mine = free.get()
        try:
            pin_to_cores(mine)  # applies to this thread and to the processes that it starts
            job(command)
        finally:
            free.put(mine)

    with ThreadPoolExecutor(at_once) as pool:
        names = {pool.submit(on_its_cores, job): name for name, job in jobs.items()}
        try:
            with tqdm(total=len(jobs), unit="run") as bar:
                for done in as_completed(names):
                    done.result()
                    bar.set_postfix_str(names[done])
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            raise


def _run_here(arguments: Sequence[str]) -> None:
    if code := command_line(list(arguments)):
        raise RuntimeError(f"{' '.join(arguments)} ended with {code}")


def _run(command: Sequence[str], compiled: Path, children: list[subprocess.Popen[str]]) -> None:
    # Instruments of a study import other modules of this folder.
    modules = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    settings = {
        "PYTHONPATH": modules,
        "JAX_COMPILATION_CACHE_DIR": str(compiled.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    child = subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    children.append(child)
    _, said = child.communicate()
    children.remove(child)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{said}")
