"""The table of commands: for each command, its flags and the function that it calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from implicit_reasoning.commands import editing, making, measuring, training
from implicit_reasoning.config import Flag


class Verb(NamedTuple):
    """A command of the program.

    Attributes:
      summary: what the command does, in one sentence.
      flags: the flags by name, in the order of the help.
      function: the function that runs the command. Its arguments are the values of the flags and
        the overrides of the configuration.
      saves: whether the command saves its state when it receives a signal.
      computes: whether the command runs compiled programs. Such a command uses the compilation
        cache.
    """

    summary: str
    flags: dict[str, Flag]
    function: Callable[[dict[str, Any], dict[str, Any]], None]
    saves: bool = False
    computes: bool = True

    @property
    def takes_config(self) -> bool:
        """Whether the command accepts overrides such as `--config.task.phi=5`."""
        return "config" in self.flags


CACHE_FLAG = "compilation_cache"
COMMON = {
    CACHE_FLAG: Flag(
        "keep compiled programs in your cache directory, so that the next start is faster",
        kind=bool,
        default=True,
    )
}
"""Flags of every command that runs compiled programs."""

_CONFIG = Flag(
    "name of a configuration that comes with the package, or file.py or package.module with a "
    "function get_config(); SCALE is the argument of get_config()",
    required=True,
    value="FILE[:SCALE]",
)
_RUN = Flag("folder of the run", kind=Path, required=True, value="DIR")
_INSTRUMENTS = Flag(
    "names of instruments, or package.module:Class or file.py:Class for your own; by default all",
    many=True,
    default=(),
    value="NAME,...",
)
_AGAIN = Flag("repeat measurements that are already saved", kind=bool, default=False)

_SWEEP: dict[str, Flag] = {
    "config": _CONFIG,
    "sweep": Flag(
        "name of the sweep; the function sweep_NAME() in the configuration file yields its trials; "
        "with --search, space_NAME() returns the space to search",
        required=True,
        value="NAME",
    ),
    "workdir": Flag(
        "folder of the sweep; created if missing; required unless --dry_run", kind=Path, value="DIR"
    ),
    "launcher": Flag(
        "how trials are started: vmap, local, ray, slurm, or package.module:function; by default "
        "vmap if at least two trials have the same shapes, and local otherwise",
        value="NAME",
    ),
    "stop_at": Flag(
        "stop every trial at this step; the trials can be continued later", kind=int, value="N"
    ),
    "dry_run": Flag("print the trials and their cost, and train nothing", kind=bool, default=False),
    "workers": Flag("with local, ray or slurm: number of trials at a time", kind=int, value="N"),
    "population": Flag("with vmap: maximum number of trials in one program", kind=int, value="N"),
    "address": Flag("with ray: address of the cluster", value="HOST:PORT"),
    "cluster": Flag("with slurm: executor of submitit, such as slurm or local", value="NAME"),
    "slurm": Flag(
        r"with slurm: parameters of submitit; \, is a comma inside a value: slurm_exclude=n1\,n2",
        many=True,
        value="NAME=VALUE,...",
    ),
    "search": Flag(
        "search a space of configurations adaptively; the only engine is optuna", value="optuna"
    ),
    "metric": Flag(
        "with --search: the column of metrics.jsonl whose last value is optimized",
        default="accuracy/test_ii",
        value="NAME",
    ),
    "trials": Flag("with --search: total number of trials", kind=int, default=32, value="N"),
    "at_once": Flag("with --search: number of trials in a batch", kind=int, default=8, value="N"),
    "rungs": Flag(
        "with --search: steps at which the worst trials of a batch are dropped",
        kind=int,
        many=True,
        default=(),
        value="STEP,...",
    ),
    "keep": Flag(
        "with --search: fraction of a batch that continues after a rung",
        kind=float,
        default=0.5,
        value="SHARE",
    ),
    "search_seed": Flag("with --search: seed of the sampler", kind=int, default=0, value="N"),
    "minimize": Flag("with --search: a smaller metric is better", kind=bool, default=False),
}

VERBS: dict[str, Verb] = {
    "train": Verb(
        "Train a configuration into a run folder, or continue a run that stopped.",
        {
            "config": _CONFIG,
            "workdir": Flag(
                "folder of the run; created if missing", Path, required=True, value="DIR"
            ),
            "stop_at": Flag(
                "stop at this step; the run can be continued later", kind=int, value="N"
            ),
            "profile": Flag(
                "write a trace of a few early steps into DIR/profile", kind=bool, default=False
            ),
        },
        training.train,
        saves=True,
    ),
    "sweep": Verb(
        "Train all trials of a sweep, or continue with those that are not done.",
        _SWEEP,
        training.sweep,
        saves=True,
    ),
    "analyze": Verb(
        "Measure checkpoints with instruments; several runs are measured in one program.",
        {
            "workdir": Flag(
                "folders of runs with the same world and model shapes; the folder of a sweep means "
                "all its trials",
                kind=Path,
                many=True,
                required=True,
                value="DIR,...",
            ),
            "instruments": _INSTRUMENTS,
            "steps": Flag(
                "all, last, or steps such as 0,1000,6000",
                many=True,
                default=("all",),
                value="STEP,...",
            ),
            "again": _AGAIN,
            "pairs": Flag(
                "pairs of prompts for instruments of pairs, such as pair_patching: bridge, "
                "exchange_e1, exchange_r1, ..., or file.py:function for your own",
                value="NAME",
            ),
            "metrics": Flag(
                "metrics for instruments of pairs: logit_difference, probability, "
                "log_probability, accuracy, divergence, or file.py:function for your own",
                many=True,
                default=(),
                value="NAME,...",
            ),
        },
        measuring.analyze,
    ),
    "score": Verb(
        "Score instruments on models with known mechanisms; the first call trains these models.",
        {
            "out": Flag("folder for the scores", kind=Path, required=True, value="DIR"),
            "instruments": _INSTRUMENTS,
            "seeds": Flag(
                "seeds of the models",
                kind=int,
                many=True,
                default=(2000, 2001, 2002),
                value="N,...",
            ),
            "cache": Flag(
                "folder of the trained models; created if missing",
                kind=Path,
                default=Path("runs/known"),
                value="DIR",
            ),
        },
        measuring.score,
    ),
    "dictionaries": Verb(
        "Train sparse dictionaries on the states of a run, measure them, and write their page.",
        {
            "workdir": _RUN,
            "config": Flag(
                "file or module of the configuration, and the architecture",
                default="implicit_reasoning.dictionaries.defaults",
                value="MODULE[:ARCHITECTURE]",
            ),
            "instruments": _INSTRUMENTS,
            "again": _AGAIN,
        },
        measuring.dictionaries,
        saves=True,
    ),
    "edit": Verb(
        "Edit a fact of a model, and write what changes: the fact, its chains and its neighbors.",
        {
            "workdir": _RUN,
            "fact": Flag(
                "entity and relation of the fact, such as e12,r3",
                required=True,
                value="ENTITY,RELATION",
            ),
            "to": Flag("the new tail, such as e40", required=True, value="ENTITY"),
            "method": Flag(
                "rome: rank-one change of one MLP; memit: least squares over one or more MLPs; "
                "tuned_W_out: fine-tuning of the output matrix of one MLP; tuned: fine-tuning of "
                "all weights",
                default="rome",
                value="NAME",
            ),
            "layer": Flag(
                "the block whose MLP is edited, by default 0; memit takes several",
                kind=int,
                many=True,
                default=(),
                value="BLOCK,...",
            ),
            "step": Flag(
                "step of the checkpoint that is edited; by default the last", kind=int, value="N"
            ),
            "save": Flag(
                "write the edited model as a new run folder, which all other commands open",
                kind=Path,
                value="DIR",
            ),
        },
        editing.edit,
    ),
    "report": Verb(
        "Write the report of a run or a sweep.",
        {
            "workdir": Flag("folder of the run or sweep", kind=Path, required=True, value="DIR"),
            "intervals": Flag(
                "first add confidence intervals to the accuracies, for a run of an older version",
                kind=bool,
                default=False,
            ),
        },
        measuring.report,
    ),
    "world": Verb(
        "Build the dataset of a configuration, print a description, and write its files.",
        {
            "config": _CONFIG,
            "out": Flag("folder for the dataset", kind=Path, required=True, value="DIR"),
            "wang_types": Flag(
                "use the split names of Wang et al., not those of Ye et al.",
                kind=bool,
                default=False,
            ),
        },
        making.world,
        computes=False,
    ),
    "plan": Verb(
        "Print what a run would cost: FLOPs, memory, disk, and time from a short measurement.",
        {
            "config": _CONFIG,
            "measure": Flag("measure the time of a step on this machine", kind=bool, default=True),
        },
        training.plan,
    ),
    "doctor": Verb(
        "Print the devices, software and speed of this machine, and advice on problems.",
        {
            "workdir": Flag(
                "folder whose disk and file locks are checked",
                kind=Path,
                default=Path("."),
                value="DIR",
            ),
            "config": Flag(
                "configuration whose group `distributed` describes the processes to connect",
                value="FILE[:SCALE]",
            ),
        },
        making.doctor,
    ),
    "import": Verb(
        "Create a run folder from the checkpoints and the data of a GrokkedTransformer run.",
        {
            "source": Flag(
                "--output_dir of the GrokkedTransformer run", kind=Path, required=True, value="DIR"
            ),
            "data": Flag(
                "--data_dir of the GrokkedTransformer run", kind=Path, required=True, value="DIR"
            ),
            "workdir": Flag(
                "folder of the new run, missing or empty", Path, required=True, value="DIR"
            ),
        },
        making.import_,
    ),
}
"""Commands by name, in the order of the help."""


def all_flags(verb: Verb) -> dict[str, Flag]:
    """Return the flags of a command, with the flags in `COMMON` if it runs compiled programs."""
    return {**verb.flags, **(COMMON if verb.computes else {})}
