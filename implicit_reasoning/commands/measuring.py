"""The commands `analyze`, `score`, `dictionaries` and `report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from implicit_reasoning.config import apply_overrides, join_list, load_config
from implicit_reasoning.errors import InputError

if TYPE_CHECKING:
    from implicit_reasoning.runs import Run

Arguments = dict[str, Any]


def report(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `report`: write the report of a run or a sweep."""
    from implicit_reasoning.report import write_report, write_sweep_report
    from implicit_reasoning.runs import Run
    from implicit_reasoning.sweeps import Runs, SweepLayout
    from implicit_reasoning.training.record import add_intervals

    workdir = flags["workdir"]
    if SweepLayout(workdir).sweep.exists():
        if flags["intervals"]:
            raise InputError(
                f"{workdir} is the folder of a sweep, but --intervals=true works only for "
                "the folder of a run"
            )
        print(f"report: {write_sweep_report(Runs(workdir))}")
        return
    run = Run(workdir)
    if flags["intervals"]:
        add_intervals(run)
    print(f"report: {write_report(run)}")


def analyze(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `analyze`: measure checkpoints with instruments."""
    from implicit_reasoning.analysis import analyze_all, with_pairs
    from implicit_reasoning.runs import Run
    from implicit_reasoning.sweeps import Runs, SweepLayout

    runs: list[Run] = []
    for workdir in flags["workdir"]:
        runs += Runs(workdir) if SweepLayout(workdir).sweep.exists() else [Run(workdir)]
    if not runs:
        raise InputError("there is nothing to measure, because no trial of the sweep has started")
    instruments: Sequence[Any] | None = list(flags["instruments"]) or None
    if flags["pairs"] is not None or flags["metrics"]:
        instruments = with_pairs(flags["instruments"], flags["pairs"], flags["metrics"])
    steps = parse_steps(flags["steps"], runs[0].steps)
    for name in analyze_all(runs, instruments, steps=steps, again=flags["again"]):
        for run in runs:
            print(f"{run.files.analysis / f'{name}.nc'}")


def parse_steps(items: Sequence[str], there: Sequence[int]) -> list[int] | None:
    """Convert the items of the flag `--steps` to steps; None means all steps.

    Args:
      items: the items of the flag: `all`, `last`, or integers.
      there: the steps of the checkpoints of the run, in ascending order.

    Raises:
      InputError: an item is not an integer.
    """
    if tuple(items) in (("all",), ("last",)):
        return None if items[0] == "all" else list(there[-1:])
    try:
        return [int(step) for step in items]
    except ValueError:
        raise InputError(
            f"--steps is {join_list(items)!r}; it must be all, last, or steps such as 0,1000,6000"
        ) from None


def score(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `score`: score instruments on models with known mechanisms."""
    from implicit_reasoning.analysis import INSTRUMENTS
    from implicit_reasoning.analysis.truth.score import score

    names, seeds = list(flags["instruments"]) or list(INSTRUMENTS), list(flags["seeds"])
    scores = score(names, cache=flags["cache"], seeds=seeds, save=flags["out"])
    print(f"{scores.summary()}\nwrote {flags['out']}")


def dictionaries(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `dictionaries`: train dictionaries on the states of a run, and measure them.

    The report of the run is also written.
    """
    from implicit_reasoning.dictionaries import measure_dictionaries, train_dictionaries
    from implicit_reasoning.dictionaries.dashboards import write_page
    from implicit_reasoning.report import write_report
    from implicit_reasoning.runs import Run
    from implicit_reasoning.runtime.machine import one_device_per_core

    one_device_per_core()
    run = Run(flags["workdir"])
    config = apply_overrides(load_config(flags["config"]), overrides)
    made = train_dictionaries(run, config)
    table = measure_dictionaries(
        run, made, list(flags["instruments"]) or None, again=flags["again"]
    )
    write_page(run, made, table)
    print(f"{len(made)} dictionaries\nreport: {write_report(run)}")
