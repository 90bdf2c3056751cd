"""Locks on folders, with and without `flock`; and systems other than Linux."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from implicit_reasoning import doctor
from implicit_reasoning.errors import InputError
from implicit_reasoning.runtime import locks, machine
from implicit_reasoning.sweeps.launchers import devices
from implicit_reasoning.sweeps.worker import pin_to_cores

MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
REFUSAL = "another process trains here"

# Holds a folder until it is killed. A second argument simulates a file system without flock.
HOLDER = """
import errno, sys, time
from pathlib import Path
from implicit_reasoning.runtime import locks
def missing(*args, **named):
    raise OSError(errno.ENOLCK, "No locks available")
if len(sys.argv) > 2:
    locks.lock_descriptor = missing
with locks.exclusive_lock(Path(sys.argv[1]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=MISSING, ids=errno.errorcode.get)
def no_flock(request, monkeypatch):
    def missing(*args, **named):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks, "lock_descriptor", missing)
    return os.strerror(request.param)


def hold_elsewhere(folder, *words):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_without_flock_a_folder_is_held_by_a_marker(no_flock, tmp_path):
    with locks.exclusive_lock(tmp_path / "run", REFUSAL):
        with (
            pytest.raises(InputError, match=REFUSAL) as refused,
            locks.exclusive_lock(tmp_path / "run", REFUSAL),
        ):
            pass
        for word in (str(tmp_path / "run"), no_flock, ".lock.owner"):
            assert word in str(refused.value)
    with locks.exclusive_lock(tmp_path / "run", REFUSAL):  # the lock was released
        pass


@pytest.mark.parametrize("words", [(), ("without flock",)])
def test_a_killed_process_leaves_no_lock_behind(words, tmp_path, monkeypatch):
    if words:

        def missing(*args, **named):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(locks, "lock_descriptor", missing)
    process = hold_elsewhere(tmp_path, *words)
    try:
        with pytest.raises(InputError, match=REFUSAL), locks.exclusive_lock(tmp_path, REFUSAL):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locks.exclusive_lock(tmp_path, REFUSAL):
        pass


def test_an_error_that_is_not_about_locks_is_passed_on(tmp_path, monkeypatch):
    def broken(*args, **named):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks, "lock_descriptor", broken)
    with pytest.raises(OSError, match="Input/output"), locks.exclusive_lock(tmp_path, REFUSAL):
        pass


def test_in_turn_waits_for_the_other(tmp_path):
    order = []

    def write(name):
        with locks.wait_for_lock(tmp_path):
            order.append(f"{name} begins")
            time.sleep(0.2)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.split()[0] for line in order[::2]] == [line.split()[0] for line in order[1::2]]


def test_in_turn_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    with (
        locks.exclusive_lock(tmp_path, REFUSAL),
        pytest.raises(InputError, match="another process has held the lock on"),
        locks.wait_for_lock(tmp_path),
    ):
        pass


def test_the_doctor_tries_a_lock(tmp_path, no_flock):
    said = doctor._lock_at(tmp_path)
    assert "marker files" in said and no_flock in said and str(tmp_path) in said
    assert not list(tmp_path.iterdir())


def test_the_doctor_names_a_lock_that_works(tmp_path):
    assert doctor._lock_at(tmp_path) == f"flock works at {tmp_path}"
    assert "cannot be written" in doctor._lock_at(Path("/proc"))


def test_a_system_that_does_not_say_which_cores(monkeypatch):
    """As on macOS, `os` has no functions for affinity."""
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(devices, "_gpus", list)
    monkeypatch.setattr(devices, "_tpu_chips", list)
    assert machine.available_cores() == [0, 1, 2]
    assert [share.cores for share in devices.device_shares(None)] == [(0,), (1,), (2,)]
    pin_to_cores([0])  # nothing happens
    assert machine.provenance()["cpu_cores"] == 3


def test_only_one_module_asks_for_affinity():
    for path in Path("implicit_reasoning").rglob("*.py"):
        if path != Path("implicit_reasoning/runtime/machine.py"):
            assert "sched_" not in path.read_text(encoding="utf-8"), path


def test_the_limit_of_files_where_the_system_names_none(monkeypatch):
    """macOS reports an infinite hard limit, but refuses an infinite soft limit."""
    infinity, limit = machine.resource.RLIM_INFINITY, [256]

    def set_limit(_, wanted):
        if wanted[0] == infinity or wanted[0] > 10240:
            raise ValueError("current limit exceeds maximum limit")
        limit[0] = wanted[0]

    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (limit[0], infinity))
    monkeypatch.setattr(machine.resource, "setrlimit", set_limit)
    assert machine.max_open_files() == 10240
