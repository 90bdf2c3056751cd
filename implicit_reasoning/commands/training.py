"""The commands `train`, `sweep` and `plan`."""

from __future__ import annotations

from typing import Any

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.errors import InputError

Arguments = dict[str, Any]


def train(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `train`: start the training of a run, or resume it."""
    from implicit_reasoning.runtime import distributed
    from implicit_reasoning.training import run_phases, train

    if flags["profile"]:
        overrides = {"profile": True, **overrides}
    config = apply_overrides(load_config(flags["config"]), overrides)
    run = train(config, flags["workdir"], stop_at=flags["stop_at"])
    if not distributed.is_primary():
        return
    for name, step in run_phases(run).describe().items():
        print(f"{name:>22}: {step}")


def sweep(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `sweep`: train all trials of a sweep that are not done."""
    from implicit_reasoning.report import write_sweep_report
    from implicit_reasoning.runtime import distributed
    from implicit_reasoning.runtime.machine import one_device_per_core
    from implicit_reasoning.sweeps import Runs, define, run_sweep
    from implicit_reasoning.sweeps.cost import describe_cost
    from implicit_reasoning.sweeps.progress import table
    from implicit_reasoning.sweeps.run import check_all_done

    if flags["search"] is not None:
        _search(flags, overrides)
        return
    found = define(flags["config"], flags["sweep"], overrides)
    if flags["dry_run"]:
        print(describe_cost(found, flags["launcher"], stop_at=flags["stop_at"]))
        return
    if flags["workdir"] is None:
        raise InputError("the command sweep needs --workdir=DIR, unless --dry_run is given")
    if flags["launcher"] in (None, "vmap"):
        one_device_per_core()
    statuses = run_sweep(
        found,
        flags["workdir"],
        launcher=flags["launcher"],
        stop_at=flags["stop_at"],
        options=_launcher_options(flags),
    )
    if distributed.is_primary():
        print(f"{table(statuses)}\nreport: {write_sweep_report(Runs(flags['workdir']))}")
    check_all_done(statuses)


def _launcher_options(flags: Arguments) -> dict[str, Any]:
    names = ("workers", "population", "address", "cluster", "slurm")
    return {name: flags[name] for name in names if flags[name] is not None}


def _search(flags: Arguments, overrides: Arguments) -> None:
    """Search a space of configurations adaptively. The trials of the search form a sweep."""
    from implicit_reasoning.report import write_sweep_report
    from implicit_reasoning.runtime.machine import one_device_per_core
    from implicit_reasoning.sweeps import Runs
    from implicit_reasoning.sweeps.directory import DONE
    from implicit_reasoning.sweeps.progress import table
    from implicit_reasoning.sweeps.run import check_all_done
    from implicit_reasoning.sweeps.search import Search, find_space, search

    if flags["search"] != "optuna" or flags["workdir"] is None:
        raise InputError("a search needs both --search=optuna and --workdir=DIR")
    if flags["dry_run"] or flags["stop_at"] is not None:
        raise InputError(
            "--search cannot be combined with --dry_run or --stop_at, because a search chooses its "
            "trials while it runs; use --trials and --rungs to limit the search"
        )
    base, space = find_space(flags["config"], flags["sweep"], overrides)
    what = Search(
        metric=flags["metric"],
        count=flags["trials"],
        at_once=flags["at_once"],
        rungs=flags["rungs"],
        keep=flags["keep"],
        seed=flags["search_seed"],
        minimize=flags["minimize"],
    )
    if flags["launcher"] in (None, "vmap"):
        one_device_per_core()
    options, launcher = _launcher_options(flags), flags["launcher"]
    statuses = search(base, space, flags["workdir"], what, launcher=launcher, options=options)
    print(f"{table(statuses)}\nreport: {write_sweep_report(Runs(flags['workdir']))}")
    if not any(status.state == DONE for status in statuses.values()):
        # In a search, it is normal that some trials diverge, so this is checked only if none is
        # done.
        check_all_done(statuses)


def plan(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `plan`: print the estimated cost of a run on this machine."""
    from implicit_reasoning.training.estimate import plan

    config = apply_overrides(load_config(flags["config"]), overrides)
    print(plan(config, measure=flags["measure"]).describe())
