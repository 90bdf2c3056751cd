"""The flag `--out` of the benchmarks, whose value is a file (`Flag(kind=Path)` is for folders)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from implicit_reasoning.config import Flag
from implicit_reasoning.paths import local_path


@dataclass(frozen=True)
class FileFlag(Flag):
    """A flag whose value is a local file; `~` is expanded, and URLs are rejected."""

    def parse(self, texts: Sequence[str | bool], name: str) -> Path:
        """Return the path. The file need not exist."""
        return local_path(super().parse(texts, name), name)


OUT = FileFlag("file of the result; by default results/benchmarks/KIND/NAME.json", value="FILE")
