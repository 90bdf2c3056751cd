"""Training of one run by several processes: connection, agreement, and loss of a process.

The same command runs on every host, and each step is one program over all devices. All processes
must therefore take the same steps at the same time. Before each chunk of steps, the processes
exchange values that may differ, such as signals and speed, and agree on one value. If one process
is lost, the remaining processes exit. All processes must then be started again together.

All processes write checkpoints together into one shared folder. All other files are written by
process 0 only.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from implicit_reasoning.errors import Exit, InputError

MODES = ("none", "auto", "explicit")

# JAX has no error type for a lost peer. These are words from the error messages of Gloo, NCCL, gRPC
# and the coordination service.
_SIGNS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|unavailable|deadline.?exceeded|heartbeat"
    r"|coordination service|socket closed|barrier",
    re.IGNORECASE,
)
_ADVICE = "rerun the same command in every process to continue from the last saved state"


class PeerLost(Exception):
    """Error that this process raises if another process of the run was lost."""

    def __init__(self, reason: str):
        super().__init__(f"a peer process was lost ({reason}); {_ADVICE}")


def faults(config: Any) -> list[str]:
    """Return an error message for each invalid field of the configuration group `distributed`."""
    mode, count, own = config.mode, config.num_processes, config.process_id
    if mode not in MODES:
        return [f"distributed.mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}"]
    found = []
    if mode == "none" and count > 1:
        found.append(
            f"distributed.num_processes is {count}, but distributed.mode is 'none'; set "
            "distributed.mode to 'explicit' or 'auto'"
        )
    if mode == "auto" and count < 0:
        found.append(
            f"distributed.num_processes is {count}; it must be the number of processes, or 0 for "
            "any number"
        )
    if mode == "explicit":
        if not re.fullmatch(r"\S+:[0-9]{1,5}", config.coordinator_address):
            found.append(
                f"distributed.coordinator_address is {config.coordinator_address!r}; it must be "
                "the address host:port of process 0"
            )
        if count < 1:
            found.append(f"distributed.num_processes is {count}; it must be at least 1")
        elif not 0 <= own < count:
            found.append(
                f"distributed.process_id is {own}; it must be between 0 and {count - 1}, and "
                "different in each process"
            )
    return found


def initialize(config: Any) -> None:
    """Connect the processes of the run. Call this before any code uses a device.

    Args:
      config: the group `distributed`. Only `config.mode` decides whether processes connect. The
        mode is never inferred from the environment, so a misconfigured cluster causes an error.
        (Otherwise each process would start a separate run.)

    Raises:
      InputError: no cluster was found, the port is in use, or the number of processes differs from
        `config.num_processes`.
    """
    if config.mode == "none":
        return
    if not jax.distributed.is_initialized():
        # In mode "auto", JAX gets these values from the cluster.
        stated = {
            "coordinator_address": config.coordinator_address,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
        if config.mode == "explicit" and config.process_id == 0:
            _check_port_is_free(config.coordinator_address)
        if config.num_processes != 1:
            _say_it_when_aborted()
        try:
            jax.distributed.initialize(
                **(stated if config.mode == "explicit" else {}),
                heartbeat_timeout_seconds=config.timeout,
                shutdown_timeout_seconds=config.timeout,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"distributed.mode is {config.mode!r}, but JAX could not connect the processes: "
                f"{error}; set distributed.mode='explicit' and all other fields of the group "
                "distributed, or set distributed.mode='none' to train with one process"
            ) from error
    if config.num_processes and jax.process_count() != config.num_processes:
        raise InputError(
            f"distributed.num_processes is {config.num_processes}, but {jax.process_count()} "
            f"processes are connected; run the command once for each of the {config.num_processes} "
            "processes"
        )


def _check_port_is_free(address: str) -> None:
    """Check that process 0 can listen on the port. If it cannot, JAX crashes without a message.

    Raises:
      InputError: the port is in use or invalid.
    """
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        # With this option, the port of a run that has just ended counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"distributed.coordinator_address is {address!r}, but process 0 cannot listen on "
                f"port {port} of this host: {error}; choose a free port"
            ) from None


def is_distributed() -> bool:
    """Return whether several processes train this run."""
    return bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def assert_same_across_processes(said: str) -> None:
    """Check that all processes pass the same text. Call this in every process.

    Raises:
      InputError: the texts differ. The error is raised in every process.
    """
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8).astype(np.float32)
    if (allgather(digest) != digest).any():
        raise InputError(
            "the configuration, stop_at, dataset or JAX settings differ between the processes of "
            "the run; run the same command on every host, and change only distributed.process_id"
        )


def is_primary() -> bool:
    """Return whether this process is process 0, which writes the files of the run."""
    # Do not call `jax.process_index` unless processes were joined: the call would initialize JAX,
    # which claims all devices of this machine.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def allgather(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "process n"]:
    """Return the values of all processes, stacked along a leading axis.

    All processes must call this function at the same point of the program.
    """
    if not is_distributed():
        return values[None]
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(values))


@contextlib.contextmanager
def exit_if_peer_lost() -> Iterator[None]:
    """In a `with` block, convert JAX's error for a lost process to `PeerLost`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        if is_distributed() and _SIGNS.search(str(error)):
            raise PeerLost(str(error).splitlines()[0][:200]) from error
        raise


def exit_process(exit_code: int) -> None:
    """End this process immediately if the run has several processes.

    A normal exit would wait in JAX's shutdown for the other processes. All other processes wait for
    this process in a collective operation. An immediate end lets the other processes notice the
    loss sooner.
    """
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    message = (
        "implicit_reasoning: JAX ended this process, most likely because a peer process was lost "
        f"(JAX's message is above); {_ADVICE}\n"
    )
    os.write(2, message.encode())
    os._exit(Exit.PEER_LOST)


def _say_it_when_aborted() -> None:
    """Install a SIGABRT handler that explains the abort and exits with `Exit.PEER_LOST`.

    JAX aborts a process if a peer stops responding or the coordinator dies. The abort comes from a
    thread of JAX. Python code cannot catch it, and a handler of Python's `signal` module would
    never run, so the handler must be a C function.
    """
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _aborted)
