"""Checkpoints: pytrees of arrays with step numbers, written atomically with Orbax."""

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

# The system's error codes for a file that cannot be written.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
)


# Orbax finds the parts of a checkpoint by a glob over the whole path, so it treats parent folders
# as patterns: a name with `[` matches nothing, and names with `*` or `?` also match other folders.
# Orbax reads a backslash as a separator, and a folder called `gs:` as the beginning of an address.
_PATTERNS = re.compile(r"[\[*?\\]")
_SCHEME = "gs:"


def check_path(folder: Path) -> None:
    """Check that Orbax will be able to read checkpoints in a folder. Nothing is written.

    Args:
      folder: the folder of a run, a sweep or dictionaries. It does not have to exist yet.

    Raises:
      InputError: the absolute path contains characters that Orbax misinterprets.
    """
    path = folder.absolute()
    found = _PATTERNS.search(str(path))
    if found or _SCHEME in path.parts:
        what = f"{found[0]!r}" if found else f"a folder called {_SCHEME!r}"
        raise InputError(
            f"{path} contains {what}, which Orbax interprets as part of a pattern or an address; "
            "choose a path without [ * ? \\ and gs:"
        )


class DamagedCheckpoint(InputError):
    """Error for a checkpoint that has its final name but cannot be read."""

    def __init__(self, folder: Path, error: Exception):
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if _in_parts(folder):
            said = (
                "the parts of the checkpoint were not merged; docs/how-to/checkpoints.md explains "
                "how to recover it"
            )
        super().__init__(f"the checkpoint {folder} cannot be read: {said}")
        self.folder = folder


def _in_parts(folder: Path) -> bool:
    """Return whether a checkpoint has its final name although its parts were not merged.

    Every process writes its own part of a checkpoint. Process 0 then merges the parts.
    """
    item = folder / "default"
    return item.is_dir() and not (item / "manifest.ocdbt").exists()


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """In a `with` block that reads a checkpoint, convert errors to `DamagedCheckpoint`."""
    # Orbax has no error type for damage, so any error counts as damage, except for a lack of memory
    # and for errors of the JAX runtime, such as a lost process.
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise DamagedCheckpoint(folder, error) from error


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """In a `with` block that writes to `folder`, convert reports of system errors to `OSError`."""
    # TensorStore reports a system error as a ValueError. Only the text of the ValueError tells
    # which system error happened.
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = str(error)
        found = next((code for code in _SYSTEM_ERRORS if os.strerror(code) in said), None)
        if found is None:
            raise
        raise OSError(found, os.strerror(found), str(folder)) from error


class Checkpoints:
    """A folder of checkpoints. A checkpoint is a pytree of arrays with a step number.

    A checkpoint is written under a temporary name and renamed when it is complete. Incomplete
    checkpoints are ignored, and the next `Checkpoints` object for the folder removes them. If a run
    has several processes, all processes must call every method in the same order.
    """

    def __init__(self, folder: Path, *, keep: int | None = None):
        """Open the folder, or create it if it is missing.

        Args:
          folder: the folder of the checkpoints.
          keep: the number of newest checkpoints to keep; None keeps all checkpoints.

        Raises:
          InputError: Orbax would misread the path; see `check_path`.
          OSError: the folder cannot be written.
        """
        check_path(folder)
        self._folder = folder.absolute()
        self._saved: set[int] = set()  # saved steps that `_check` has not inspected yet
        with written(folder):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True
                ),
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have a complete checkpoint, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, tree: Any) -> None:
        """Save a checkpoint in the background. If the step already has a checkpoint, do nothing.

        Raises:
          OSError: this checkpoint or the previous checkpoint could not be written.
        """
        if step not in self._manager.all_steps():
            # Without `force`, Orbax silently skips a step that is earlier than the newest
            # checkpoint.
            with written(self._folder):
                self._manager.save(step, args=ocp.args.PyTreeSave(tree), force=True)
            # Orbax waits for the previous save to end before it starts this one.
            earlier, self._saved = self._saved, {step}
            self._check(earlier)

    def restore(self, step: int, like: Any) -> Any:
        """Read the checkpoint of a step into arrays with the shardings of `like`.

        Args:
          step: the step.
          like: a pytree with the structure of the checkpoint. Its leaves are arrays, or instances
            of `jax.ShapeDtypeStruct` with a sharding.

        Raises:
          DamagedCheckpoint: the checkpoint cannot be read.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(like)
        with readable(self._folder / str(step)):
            return self._manager.restore(
                step, args=ocp.args.PyTreeRestore(like, restore_args=arguments)
            )

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints of all steps after `step`."""
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Wait until all saves are on disk.

        Raises:
          OSError: a save could not be written.
        """
        with written(self._folder):
            self._manager.wait_until_finished()
        self._check(self._saved)

    def close(self) -> None:
        """Wait until all saves are on disk, then release the folder.

        Raises:
          OSError: a save could not be written.
        """
        with written(self._folder):
            self._manager.close()
        self._check(self._saved)

    def _check(self, steps: set[int]) -> None:
        """Raise an `OSError` if a finished save left a checkpoint that cannot be read.

        Only process 0 checks this, because it merges the parts of a checkpoint. A check reads no
        file contents. Steps whose checkpoint no longer exists are ignored.
        """
        if jax.distributed.is_initialized() and jax.process_index() != 0:
            return
        for step in sorted(steps):
            folder = self._folder / str(step)
            if _in_parts(folder):
                raise OSError(
                    errno.EIO,
                    "the checkpoint was written, but its parts were not merged; "
                    "docs/how-to/checkpoints.md explains how to recover it",
                    str(folder),
                )
