"""Shares of this machine for trials that run side by side: some cores each, or a device each."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from implicit_reasoning.errors import InputError
from implicit_reasoning.runtime.machine import available_cores

_MEMORY = 0.9  # of a GPU, for all trials on it together


class DeviceShare(NamedTuple):
    """What one trial's process gets.

    Attributes:
      cores: numbers of those that it may run on.
      environment: variables that show it its device, beside those of this process.
    """

    cores: tuple[int, ...]
    environment: Mapping[str, str]


def device_shares(workers: int | None) -> list[DeviceShare]:
    """Deal this machine out.

    Args:
      workers: how many shares; by default one for each GPU or TPU chip, or for each core.

    Raises:
      InputError: there are to be none, or two of one TPU chip.
    """
    own = available_cores()
    gpus, chips = _gpus(), _tpu_chips()
    devices = gpus or chips
    count = workers or len(devices) or len(own)
    if count < 1:
        raise InputError(f"--workers={count}: there must be at least one")
    # More workers than cores share them.
    dealt = [tuple(own[n::count]) or (own[n % len(own)],) for n in range(count)]
    if not devices:
        return [DeviceShare(each, {}) for each in dealt]
    on_one = -(-count // len(devices))
    show = _show_gpu if gpus else _show_chip
    return [
        DeviceShare(each, show(devices[number % len(devices)], on_one))
        for number, each in enumerate(dealt)
    ]


def _gpus() -> list[str]:
    """Identifiers of the GPUs that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # As CUDA has it: what comes after the first that is none does not count, -1 hides all.
        return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))
    if shutil.which("nvidia-smi") is None:
        return []
    said = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    if said.returncode:  # a driver that does not work
        return []
    return [str(number) for number in range(len(said.stdout.splitlines()))]


def _show_gpu(name: str, on_one: int) -> dict[str, str]:
    # JAX takes three quarters of a GPU's memory at once: those that share one need less each.
    return {
        "CUDA_VISIBLE_DEVICES": name,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_MEMORY / on_one:.3f}",
    }


def _tpu_chips() -> Sequence[str]:
    """Numbers of the TPU chips of this host."""
    found = [name.removeprefix("accel") for name in os.listdir("/dev") if name.startswith("accel")]
    return sorted((name for name in found if name.isdecimal()), key=int)


def _show_chip(name: str, on_one: int) -> dict[str, str]:
    if on_one > 1:
        raise InputError("a TPU chip can be used by one process only: choose fewer --workers")
    return {
        "TPU_VISIBLE_CHIPS": name,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
