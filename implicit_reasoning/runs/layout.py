"""Paths of the files in a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The paths of the files in a run directory.

    `config.json` is written last when a run begins, so a directory that contains it is a run.
    """

    workdir: Path

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.workdir / "config.json"

    @property
    def world(self) -> Path:
        """The dataset: rows, splits, ground truth."""
        return self.workdir / "world.npz"

    @property
    def provenance(self) -> Path:
        """Versions, hardware and settings of each start of the run."""
        return self.workdir / "provenance.json"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object per line."""
        return self.workdir / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.workdir / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Parameters at the scheduled steps; never deleted."""
        return self.workdir / "checkpoints"

    @property
    def stacked(self) -> Path:
        """For a trial that was trained in a population: the population's folder and its row."""
        return self.workdir / "stacked.json"

    @property
    def trial(self) -> Path:
        """For a trial of a sweep: the values that were chosen for it."""
        return self.workdir / "trial.json"

    @property
    def resume(self) -> Path:
        """The full training state at the last two saves."""
        return self.workdir / "resume"

    @property
    def first_correct(self) -> Path:
        """For each probe row, the first evaluated step with a correct answer."""
        return self.workdir / "first_correct.npz"

    @property
    def profile(self) -> Path:
        """Profiler traces of early steps, if the configuration asks for them."""
        return self.workdir / "profile"

    @property
    def analysis(self) -> Path:
        """Results of instruments, `<name>.nc`."""
        return self.workdir / "analysis"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.workdir / "report" / "index.html"
