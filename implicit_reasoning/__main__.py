"""The commands: `python -m implicit_reasoning VERB --flag=value ...`; each calls one function.

Exit codes are those of `errors.Exit`.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from implicit_reasoning.config import apply_overrides, load_config, parse_flags
from implicit_reasoning.errors import Exit, InputError

_TRAINING = ("train", "sweep", "dictionaries")  # commands that a signal stops, saved


class Verb(NamedTuple):
    """A command: what it does in one line, its flags with their defaults, its function."""

    summary: str
    flags: dict[str, Any]
    required: tuple[str, ...]
    function: Callable[[dict[str, Any], dict[str, Any]], None]


def train(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Train, or go on training."""
    from implicit_reasoning.training import distributed, run_phases, train

    if flags["profile"]:
        overrides = {"profile": True, **overrides}
    config = apply_overrides(load_config(flags["config"]), overrides)
    run = train(config, flags["workdir"], stop_at=flags["stop_at"])
    if not distributed.writes():
        return
    for name, step in run_phases(run).describe().items():
        print(f"{name:>22}: {step}")


def report(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Write the page of a run."""
    from implicit_reasoning.report import write_report, write_sweep_report
    from implicit_reasoning.runs import Run
    from implicit_reasoning.sweeps import Runs, SweepLayout

    workdir = flags["workdir"]
    if SweepLayout(Path(workdir)).sweep.exists():
        print(f"report: {write_sweep_report(Runs(workdir))}")
    else:
        print(f"report: {write_report(Run(workdir))}")


def analyze(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Measure checkpoints with instruments."""
    from implicit_reasoning.analysis import analyze_all
    from implicit_reasoning.runs import Run
    from implicit_reasoning.sweeps import Runs, SweepLayout

    runs: list[Run] = []
    for workdir in flags["workdir"].split(","):
        sweep = SweepLayout(Path(workdir)).sweep.exists()
        runs += Runs(workdir) if sweep else [Run(workdir)]
    names = flags["instruments"].split(",") if flags["instruments"] else None
    steps = parse_steps(flags["steps"], runs[0].steps)
    for name in analyze_all(runs, names, steps=steps, again=flags["again"]):
        for run in runs:
            print(f"{run.files.analysis / f'{name}.nc'}")


def parse_steps(text: str, there: Sequence[int]) -> list[int] | None:
    """The steps of `--steps=`: `all` (None), `last`, or numbers with commas between."""
    if text in ("all", "last"):
        return None if text == "all" else list(there[-1:])
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise InputError(
            f"--steps={text} is not understood; it is all, last, or steps such as 0,1000,6000"
        ) from None


def score(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Judge instruments on models whose mechanism is known."""
    from implicit_reasoning.analysis import INSTRUMENTS
    from implicit_reasoning.analysis.truth.score import score

    names = flags["instruments"].split(",") if flags["instruments"] else list(INSTRUMENTS)
    seeds = parse_seeds(flags["seeds"])
    scores = score(names, cache=flags["cache"], seeds=seeds, save=flags["out"])
    print(f"{scores.summary()}\nwrote {flags['out']}")


def parse_seeds(text: str) -> list[int]:
    """The numbers of `--seeds=`, with commas between."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError(
            f"--seeds={text} is not understood; it is numbers with commas between, such as 1,2,3"
        ) from None


def dictionaries(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Train sparse dictionaries of a run, measure them, and write the page anew."""
    from implicit_reasoning.dictionaries import measured, train_dictionaries
    from implicit_reasoning.machine import every_core_a_device
    from implicit_reasoning.report import write_report
    from implicit_reasoning.runs import Run

    every_core_a_device()
    run = Run(flags["workdir"])
    config = apply_overrides(load_config(flags["config"]), overrides)
    made = train_dictionaries(run, config)
    measured(run, made)
    print(f"{len(made)} dictionaries\nreport: {write_report(run)}")


def world(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Build a dataset, say what is in it and what answers it without composing, write its files."""
    from implicit_reasoning.worlds import build
    from implicit_reasoning.worlds.exchange import write_grokked
    from implicit_reasoning.worlds.summary import describe

    config = apply_overrides(load_config(flags["config"]), overrides)
    began = time.perf_counter()
    dataset = build(config.task)
    print(describe(dataset))
    out = Path(flags["out"])
    write_grokked(dataset, out, wang_types=flags["wang_types"])  # checks before it writes
    dataset.save(out / "world.npz")
    print(f"wrote {out} in {time.perf_counter() - began:.1f} s")


def sweep(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Train the trials of a sweep, or go on with those that are not done."""
    from implicit_reasoning.machine import every_core_a_device
    from implicit_reasoning.report import write_sweep_report
    from implicit_reasoning.sweeps import Runs, define, run_sweep
    from implicit_reasoning.sweeps.cost import describe_cost
    from implicit_reasoning.sweeps.progress import table
    from implicit_reasoning.sweeps.run import check_all_done
    from implicit_reasoning.training import distributed

    if flags["search"] is not None:
        _search(flags, overrides)
        return
    found = define(flags["config"], flags["sweep"], overrides)
    if flags["dry_run"]:
        print(describe_cost(found, flags["launcher"], stop_at=flags["stop_at"]))
        return
    if flags["workdir"] is None:
        raise InputError("sweep needs --workdir=, but for --dry_run")
    if flags["launcher"] in (None, "vmap"):
        every_core_a_device()
    statuses = run_sweep(
        found,
        flags["workdir"],
        launcher=flags["launcher"],
        stop_at=flags["stop_at"],
        options=_launcher_options(flags),
    )
    if distributed.writes():
        print(f"{table(statuses)}\nreport: {write_sweep_report(Runs(flags['workdir']))}")
    check_all_done(statuses)


def _launcher_options(flags: dict[str, Any]) -> dict[str, Any]:
    names = ("workers", "population", "address", "cluster", "slurm")
    return {name: flags[name] for name in names if flags[name] is not None}


def _search(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Search a space adaptively; its trials are a sweep."""
    from implicit_reasoning.machine import every_core_a_device
    from implicit_reasoning.report import write_sweep_report
    from implicit_reasoning.sweeps import Runs
    from implicit_reasoning.sweeps.directory import DONE
    from implicit_reasoning.sweeps.progress import table
    from implicit_reasoning.sweeps.run import check_all_done
    from implicit_reasoning.sweeps.search import Search, find_space, search

    if flags["search"] != "optuna" or flags["workdir"] is None:
        raise InputError("a search is --search=optuna, and needs --workdir=")
    if flags["dry_run"] or flags["stop_at"] is not None:
        raise InputError(
            "a search takes no --dry_run and no --stop_at: what it trains it finds on the way; see "
            "--trials, --rungs"
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
        every_core_a_device()
    options, launcher = _launcher_options(flags), flags["launcher"]
    statuses = search(base, space, flags["workdir"], what, launcher=launcher, options=options)
    print(f"{table(statuses)}\nreport: {write_sweep_report(Runs(flags['workdir']))}")
    if not any(status.state == DONE for status in statuses.values()):
        check_all_done(statuses)  # that some diverge is part of searching


def plan(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Say what a run would cost here."""
    from implicit_reasoning.training.plan import plan

    config = apply_overrides(load_config(flags["config"]), overrides)
    print(plan(config, measure=flags["measure"]).describe())


def doctor(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Say what this machine has, reaches and lacks."""
    from implicit_reasoning import doctor
    from implicit_reasoning.training import distributed

    if flags["config"] is not None:
        config = apply_overrides(load_config(flags["config"]), overrides)
        distributed.join(config.distributed)
    for name, finding in doctor.examine(flags["workdir"]).items():
        print(f"{name:>18}: {finding}")
    for remedy in doctor.remedies():
        print(f"\n{remedy}")


def import_(flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Make a run directory of what others trained."""
    from implicit_reasoning.grokked import import_grokked

    run = import_grokked(flags["source"], flags["data"], flags["workdir"])
    print(f"imported {run}")


VERBS = {
    "train": Verb(
        "train a configuration into a run directory, or go on with it",
        {"config": str, "workdir": str, "stop_at": int, "profile": False},
        ("config", "workdir"),
        train,
    ),
    "sweep": Verb(
        "train all trials of a sweep, or go on with those that are not done",
        {
            **{"config": str, "sweep": str, "workdir": str, "launcher": str, "stop_at": int},
            **{"dry_run": False, "workers": int, "population": int, "address": str},
            **{"cluster": str, "slurm": str, "search": str, "metric": "accuracy/test_ii"},
            **{"trials": 32, "at_once": 8, "rungs": (), "keep": 0.5},
            **{"search_seed": 0, "minimize": False},
        },
        ("config", "sweep"),
        sweep,
    ),
    "analyze": Verb(
        "measure checkpoints with instruments; of several runs (--workdir=A,B) in one program",
        {"workdir": str, "instruments": "", "steps": "all", "again": False},
        ("workdir",),
        analyze,
    ),
    "score": Verb(
        "judge instruments on models whose mechanism is known; the first time it trains some",
        {"out": str, "instruments": "", "seeds": "2000,2001,2002", "cache": "runs/known"},
        ("out",),
        score,
    ),
    "dictionaries": Verb(
        "train sparse dictionaries on a run's states, measure them, and write its page",
        {"workdir": str, "config": "implicit_reasoning.dictionaries.defaults"},
        ("workdir",),
        dictionaries,
    ),
    "report": Verb("write the page of a run or a sweep", {"workdir": str}, ("workdir",), report),
    "world": Verb(
        "build a configuration's dataset, describe it and write it",
        {"config": str, "out": str, "wang_types": False},
        ("config", "out"),
        world,
    ),
    "plan": Verb(
        "what a run would cost: FLOPs, memory, disk, and time from a short measurement",
        {"config": str, "measure": True},
        ("config",),
        plan,
    ),
    "doctor": Verb(
        "what this machine has, reaches and lacks; with a config, after joining its processes",
        {"workdir": ".", "config": str},
        (),
        doctor,
    ),
    "import": Verb(
        "make a run directory of a GrokkedTransformer run: its checkpoints, and its data",
        {"source": str, "data": str, "workdir": str},
        ("source", "data", "workdir"),
        import_,
    ),
}


def usage() -> str:
    """All commands and their flags."""
    lines = ["python -m implicit_reasoning VERB --flag=value ... [--config.x.y=value ...]"]
    for name, verb in VERBS.items():
        flags = " ".join(
            f"--{flag}=..." if flag in verb.required else f"[--{flag}=...]" for flag in verb.flags
        )
        lines += [f"  {name} {flags}", f"      {verb.summary}"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("help", "--help", "-h"):
        print(usage())
        return 0
    try:
        return _run(words[0], words[1:])
    except (InputError, OSError, MemoryError) as error:
        return _answer(error)


def _run(name: str, words: Sequence[str]) -> int:
    if name not in VERBS:
        raise InputError(f"there is no command {name!r}\n{usage()}")
    verb = VERBS[name]
    flags, overrides = parse_flags(words, verb.flags)
    missing = [f"--{flag}=" for flag in verb.required if flags[flag] is None]
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}\n{usage()}")
    if overrides and "config" not in verb.flags:
        raise InputError(f"{name} takes no --config.* overrides")
    if name not in _TRAINING:
        verb.function(flags, overrides)
        return 0
    return _train_and_answer(verb, flags, overrides)


def _train_and_answer(verb: Verb, flags: dict[str, Any], overrides: dict[str, Any]) -> int:
    """Run one of `_TRAINING`; what one of many processes meets ends it, and so tells the rest."""
    from implicit_reasoning.sweeps.run import TrialsLost
    from implicit_reasoning.training import Interrupted, NonFiniteLoss, PeerLost, distributed

    try:
        verb.function(flags, overrides)
    except Interrupted as stopped:
        return _say(stopped, Exit.INTERRUPTED)
    except (NonFiniteLoss, TrialsLost) as diverged:
        return _say(diverged, Exit.DIVERGED)
    except PeerLost as lost:
        distributed.leave(_say(lost, Exit.PEER_LOST))
        return Exit.PEER_LOST
    except Exception as error:
        if distributed.many():
            distributed.leave(_answer(error))
        raise
    return 0


def _answer(error: Exception) -> int:
    """Say what went wrong; returns its exit code."""
    if isinstance(error, MemoryError):
        return _say(InputError(f"not enough memory: {error}; choose smaller sizes"), Exit.BAD_INPUT)
    if isinstance(error, InputError | OSError):
        return _say(error, Exit.BAD_INPUT if isinstance(error, InputError) else Exit.NO_FILE)
    traceback.print_exception(error)
    return 1


def _say(error: Exception, code: int) -> int:
    print(f"implicit_reasoning: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
