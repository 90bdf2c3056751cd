"""Where the files of a run directory are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The files of a run directory.

    `config.json` is written last when a run begins: a directory that has it is a run.
    """

    workdir: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.workdir / "config.json"

    @property
    def world(self) -> Path:
        """The dataset: rows, splits, truth."""
        return self.workdir / "world.npz"

    @property
    def provenance(self) -> Path:
        """Versions and hardware, and how long each start of the run took."""
        return self.workdir / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.workdir / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.workdir / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Parameters, on the schedule, kept for ever."""
        return self.workdir / "checkpoints"

    @property
    def stacked(self) -> Path:
        """Of a trial that was trained in a population: where, and which row it is."""
        return self.workdir / "stacked.json"

    @property
    def trial(self) -> Path:
        """Of a trial of a sweep: what was chosen for it."""
        return self.workdir / "trial.json"

    @property
    def resume(self) -> Path:
        """The full training state, the last two."""
        return self.workdir / "resume"

    @property
    def first_correct(self) -> Path:
        """Per probe row, the first evaluated step at which it was answered correctly."""
        return self.workdir / "first_correct.npz"

    @property
    def profile(self) -> Path:
        """Traces of early steps, where the configuration asked for one."""
        return self.workdir / "profile"

    @property
    def analysis(self) -> Path:
        """Results of instruments, `<name>.nc`."""
        return self.workdir / "analysis"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.workdir / "report" / "index.html"
