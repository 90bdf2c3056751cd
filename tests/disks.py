"""Full disks and read-only folders, mounted as root."""

import contextlib
import os
import resource
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of this size (`400k`) on a new folder; unmount it afterwards."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_files(size=15_000):
    """Limit the size of files, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def grow(folder, size):
    """Enlarge a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder, original):
    """Mount the contents of `original` read-only on a new folder."""
    folder.mkdir()
    _mount("--bind", "-o", "ro", str(original), str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*words):
    # A mount is necessary, because CI runs as root, for whom permissions do not hold, and the disk
    # of an ordinary machine is not full. Without the right to mount, the test is skipped.
    if os.geteuid() or subprocess.run(["mount", *words], capture_output=True).returncode:
        pytest.skip("mounting a small or a read-only disk needs root, and the right to mount")
