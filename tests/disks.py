"""Disks that are full, and folders that cannot be written, for real: mounted, as root."""

import contextlib
import os
import resource
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes (`400k`) in a new folder; gone afterwards."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_files(size=15_000):
    """No file may grow beyond so many bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def grow(folder, size):
    """Make room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder, original):
    """What is in `original`, in a new folder where nobody may write."""
    folder.mkdir()
    _mount("--bind", "-o", "ro", str(original), str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*words):
    # Nothing less would do: permissions do not hold for root, as whom CI runs, and no disk of an
    # ordinary machine is full. Without the right to mount there is nothing to test with.
    if os.geteuid() or subprocess.run(["mount", *words], capture_output=True).returncode:
        pytest.skip("mounting a small or a read-only disk needs root, and the right to mount")
