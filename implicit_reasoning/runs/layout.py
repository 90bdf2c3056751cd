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
        """The file of the complete configuration."""
        return self.workdir / "config.json"

    @property
    def world(self) -> Path:
        """The file of the dataset: rows, splits and ground truth."""
        return self.workdir / "world.npz"

    @property
    def provenance(self) -> Path:
        """The file with versions, hardware and JAX settings of each start of the run."""
        return self.workdir / "provenance.json"

    @property
    def metrics(self) -> Path:
        """The file of metrics, with one JSON object per line."""
        return self.workdir / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.workdir / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of the scheduled checkpoints of the parameters, which are never deleted."""
        return self.workdir / "checkpoints"

    @property
    def stacked(self) -> Path:
        """The file that lists the populations (groups of jointly trained trials) of this trial."""
        return self.workdir / "stacked.json"

    @property
    def trial(self) -> Path:
        """The file of the configuration values that a sweep chose for this trial."""
        return self.workdir / "trial.json"

    @property
    def resume(self) -> Path:
        """The folder of the full training states; the last two are kept."""
        return self.workdir / "resume"

    @property
    def first_correct(self) -> Path:
        """The file of the first correct step for each probe row (row that training evaluates)."""
        return self.workdir / "first_correct.npz"

    @property
    def profile(self) -> Path:
        """The folder of profiler traces, which exists only if the configuration sets `profile`."""
        return self.workdir / "profile"

    @property
    def analysis(self) -> Path:
        """The folder of analysis results, with a file `<name>.nc` for each instrument."""
        return self.workdir / "analysis"

    @property
    def edits(self) -> Path:
        """The folder of the pages of edits, which the command `edit` writes."""
        return self.workdir / "edits"

    @property
    def graphs(self) -> Path:
        """The folder of the pages of attribution graphs of single queries."""
        return self.workdir / "graphs"

    @property
    def report(self) -> Path:
        """The file of the HTML report."""
        return self.workdir / "report" / "index.html"
