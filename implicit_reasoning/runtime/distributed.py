"""Many processes that train one run: joining them, agreeing, and ending when one of them is lost.

The same command runs on every host; each step is one program over all their devices. So all of them
must take the same steps at the same time: what may differ between them (signals, speed) they agree
on, and when one is gone the others cannot go on. They end, and are started again together.

Process 0 alone writes, except for checkpoints, which all write together into one shared folder.
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

# JAX has no type of error for this; these are words of Gloo, gRPC and the coordination service.
_SIGNS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|unavailable|deadline.?exceeded|heartbeat"
    r"|coordination service|socket closed|barrier",
    re.IGNORECASE,
)
_ADVICE = "start all processes again with the same commands: they go on from the last saved state"


class PeerLost(Exception):
    """Another process of the run is gone."""

    def __init__(self, reason: str):
        super().__init__(f"a peer process was lost ({reason}); {_ADVICE}")


def faults(config: Any) -> list[str]:
    """What is wrong with a config's `distributed` group, in words."""
    mode, count, own = config.mode, config.num_processes, config.process_id
    if mode not in MODES:
        return [f"distributed.mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}"]
    found = []
    if mode == "none" and count > 1:
        found.append(
            f"distributed.num_processes is {count}, but distributed.mode is 'none'; it must be "
            "'explicit' or 'auto'"
        )
    if mode == "auto" and count < 0:
        found.append(f"distributed.num_processes is {count}; it must be the number, or 0")
    if mode == "explicit":
        if not re.fullmatch(r"\S+:[0-9]{1,5}", config.coordinator_address):
            found.append(
                f"distributed.coordinator_address is {config.coordinator_address!r}; it must be "
                "host:port of process 0"
            )
        if count < 1:
            found.append(f"distributed.num_processes is {count}; it must be at least 1")
        elif not 0 <= own < count:
            found.append(
                f"distributed.process_id is {own}; it must be between 0 and {count - 1}, another "
                "one for each process"
            )
    return found


def initialize(config: Any) -> None:
    """Meet the other processes, before anything touches a device.

    Args:
      config: the `distributed` group. Its mode alone decides: nothing is guessed from the
        environment, so that a misconfigured pod is an error, not many runs of one process each.

    Raises:
      InputError: there is no cluster to be found, or another number of processes than stated.
    """
    if config.mode == "none":
        return
    if not jax.distributed.is_initialized():
        # In "auto" JAX asks the cluster for what is not stated.
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
                f"distributed.mode is {config.mode!r}, but JAX could not join the processes: "
                f"{error}; state them with distributed.mode='explicit', or use 'none'"
            ) from error
    if config.num_processes and jax.process_count() != config.num_processes:
        raise InputError(
            f"distributed.num_processes is {config.num_processes}, but {jax.process_count()} "
            "processes were joined; the command must run exactly once for each"
        )


def _check_port_is_free(address: str) -> None:
    """Process 0 is to listen there; where something else does, JAX crashes without a word."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run that just ended is none
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"distributed.coordinator_address is {address!r}, but process 0 cannot listen on "
                f"port {port} here: {error}; choose a free port"
            ) from None


def is_distributed() -> bool:
    """Whether this process has peers."""
    return bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def assert_same_across_processes(said: str) -> None:
    """Raise an `InputError`, in every process, unless all of them say the same here."""
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8).astype(np.float32)
    if (allgather(digest) != digest).any():
        raise InputError(
            "the processes were started with different configurations, stop_at or worlds; the same "
            "command must run on every host, but for distributed.process_id"
        )


def is_primary() -> bool:
    """Whether this process writes the files of the run."""
    # Not asked of JAX where there are no peers: it would take hold of every device of this machine.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def allgather(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "process n"]:
    """What every process has to say; all of them must ask at the same point."""
    if not is_distributed():
        return values[None]
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(values))


@contextlib.contextmanager
def exit_if_peer_lost() -> Iterator[None]:
    """Turn what JAX says when a peer is gone into `PeerLost`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        if is_distributed() and _SIGNS.search(str(error)):
            raise PeerLost(str(error).splitlines()[0][:200]) from error
        raise


def exit_process(exit_code: int) -> None:
    """End this process here and now, if it has peers.

    They wait for it in a collective and it would wait for them at JAX's goodbye: the sooner it is
    gone, the sooner they notice.
    """
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    message = (
        "implicit_reasoning: JAX ended this process, most likely because a peer process was lost "
        f"(its own words are above); {_ADVICE}\n"
    )
    os.write(2, message.encode())
    os._exit(Exit.PEER_LOST)


def _say_it_when_aborted() -> None:
    """Answer the abort by which JAX ends a process whose peer is silent, or whose coordinator died.

    It comes from a thread of JAX's own that no exception of ours can stop, and a handler of
    `signal` would never run: it must be one that C calls.
    """
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _aborted)
