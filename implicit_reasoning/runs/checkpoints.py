"""Pytrees of arrays under step numbers, whole or not there at all, through Orbax."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from implicit_reasoning.errors import InputError

# What the system says of a file that cannot be written.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
)


# Orbax finds the parts of a checkpoint by a glob that has the whole path in it, so that its parents
# are patterns too: `[` matches nothing, `*` and `?` match other folders. A backslash is read as a
# separator, and a folder called `gs:` as the beginning of an address.
_PATTERNS = re.compile(r"[\[*?\\]")
_SCHEME = "gs:"


def check_path(folder: Path) -> None:
    """Refuse a folder in which checkpoints would be lost; nothing is written.

    Args:
      folder: in which a run, a sweep or dictionaries are to be; it need not exist.

    Raises:
      InputError: its absolute path has characters that Orbax misreads.
    """
    path = folder.absolute()
    found = _PATTERNS.search(str(path))
    if found or _SCHEME in path.parts:
        what = f"{found[0]!r}" if found else f"a folder called {_SCHEME!r}"
        raise InputError(
            f"{path} has {what} in it, and checkpoints in such a path cannot be read again (Orbax "
            "takes the path for a pattern or an address); choose a path without [ * ? \\ and gs:"
        )


class DamagedCheckpoint(InputError):
    """A checkpoint that has its name but cannot be read."""

    def __init__(self, folder: Path, error: Exception):
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if _in_parts(folder):
            said = (
                "its parts were not put together; docs/how-to/checkpoints.md says how to recover it"
            )
        super().__init__(f"the checkpoint {folder} cannot be read: {said}")
        self.folder = folder


def _in_parts(folder: Path) -> bool:
    """Whether a step was renamed to its name although its parts were not put together."""
    item = folder / "default"
    return item.is_dir() and not (item / "manifest.ocdbt").exists()


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Call it `DamagedCheckpoint` if what is in `folder` cannot be read in this block."""
    # Orbax has no type of error for damage: whatever it says but for want of memory, or of a peer.
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise DamagedCheckpoint(folder, error) from error


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """Raise an OSError where this block meets what the system said of a file in `folder`."""
    # TensorStore reports what the system said of a file as a ValueError; only its text tells.
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = str(error)
        found = next((code for code in _SYSTEM_ERRORS if os.strerror(code) in said), None)
        if found is None:
            raise
        raise OSError(found, os.strerror(found), str(folder)) from error


class Checkpoints:
    """Pytrees of arrays under step numbers in one folder, for the processes that write them.

    A save is written under a temporary name and renamed when it is whole; what a killed process
    left half-written is never counted, and removed by the next writer. In a run of many processes
    all of them call every method, in the same order.
    """

    def __init__(self, folder: Path, *, keep: int | None = None):
        """Open `folder`, making it if need be; only the last `keep` steps stay (None: all)."""
        check_path(folder)
        self._folder = folder.absolute()
        self._saved: set[int] = set()  # steps whose files were not yet looked at
        with written(folder):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True
                ),
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """Finished steps, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, tree: Any) -> None:
        """Save in the background; a step that is there already is left as it is.

        Raises:
          OSError: this save, or the one before it, could not be written.
        """
        if step not in self._manager.all_steps():
            # Without `force` Orbax passes over a step before its latest, and says nothing.
            with written(self._folder):
                self._manager.save(step, args=ocp.args.PyTreeSave(tree), force=True)
            # Orbax has waited for the save before this one.
            earlier, self._saved = self._saved, {step}
            self._check(earlier)

    def restore(self, step: int, like: Any) -> Any:
        """The tree of a step, on the devices and shardings of `like` (arrays or their shapes).

        Raises:
          DamagedCheckpoint: it cannot be read.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(like)
        with readable(self._folder / str(step)):
            return self._manager.restore(
                step, args=ocp.args.PyTreeRestore(like, restore_args=arguments)
            )

    def drop_after(self, step: int) -> None:
        """Remove every later step: a run that goes on from `step` comes by them again."""
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Return when everything that was saved is on disk; raise what went wrong on the way."""
        with written(self._folder):
            self._manager.wait_until_finished()
        self._check(self._saved)

    def close(self) -> None:
        """Wait, and let go of the folder."""
        with written(self._folder):
            self._manager.close()
        self._check(self._saved)

    def _check(self, steps: set[int]) -> None:
        """Raise an OSError if a save that has ended left a step that cannot be read.

        Only the process that puts the parts of a checkpoint together looks for them: one `stat` a
        save. Of steps that are not there any more nothing is said.
        """
        if jax.distributed.is_initialized() and jax.process_index() != 0:
            return
        for step in sorted(steps):
            folder = self._folder / str(step)
            if _in_parts(folder):
                raise OSError(
                    errno.EIO,
                    "the checkpoint was written, but its parts were not put together; "
                    "docs/how-to/checkpoints.md says how to recover it",
                    str(folder),
                )
