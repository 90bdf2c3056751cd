"""All fields of a run's configuration: type, bounds, choices, default and meaning.

The packages `model` and `worlds` declare the fields of the groups `model` and `task`. All other
fields are declared here. These fields are not declared in `training/`, because opening a run does
not import `training`. `Run.config` contains all fields, including fields that were added after the
run was trained.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from implicit_reasoning.field import INFINITE, MAX_INT, Field
from implicit_reasoning.model import fields as model_fields
from implicit_reasoning.runtime.distributed import MODES
from implicit_reasoning.worlds.tasks import fields as task_fields

FIELDS: dict[str, Field] = {
    "seed": Field(
        int,
        "random seed of initialization, data order and dropout; the world has its own seed",
        0,
        0,
        MAX_INT,
    ),
    "steps": Field(
        int,
        "number of updates; the schedule of the learning rate ends at this step",
        6_000,
        1,
        MAX_INT,
    ),
    "batch_size": Field(int, "number of rows in each update", 256, 1, MAX_INT),
    "order": Field(
        str,
        "'replacement' (rows are drawn independently) or 'epochs' (each row once per epoch)",
        "replacement",
        choices=("replacement", "epochs"),
    ),
    "log_every": Field(int, "steps between rows of metrics.jsonl", 50),
    "resume_every": Field(int, "steps between saves of the full state", 500),
    "profile": Field(bool, "write a trace of a few early steps into profile/", False),
    "task.name": task_fields.FIELDS["composition"]["name"],
    **{f"model.{name}": field for name, field in model_fields.FIELDS.items()},
    "loss.early_supervision.weight": Field(
        float,
        "weight of an additional loss on states after earlier blocks; 0 means no such loss",
        0.0,
        0,
        INFINITE,
        before=0.0,
    ),
    "loss.early_supervision.layers": Field(
        tuple,
        "indices of the blocks whose outputs get this loss; empty means all but the last block",
        (),
        before=(),
    ),
    "loss.early_supervision.rows": Field(
        str,
        "targets: 'atomic' (tails of single facts), 'chains' (bridge entities) or 'all' (both)",
        "atomic",
        choices=("atomic", "chains", "all"),
        before="atomic",
    ),
    "init_from.workdir": Field(
        str,
        "run directory with a checkpoint of the initial parameters; empty means random values",
        "",
        before="",
    ),
    "init_from.step": Field(
        int,
        "step of the checkpoint in init_from.workdir; -1 means the last checkpoint",
        -1,
        -1,
        MAX_INT,
        before=-1,
    ),
    "optimizer.learning_rate": Field(float, "learning rate after warm-up", 1e-3, 0, INFINITE),
    "optimizer.weight_decay": Field(
        float,
        "decoupled weight decay; it applies to weights and embeddings, not to biases and norms",
        0.5,
        0,
        INFINITE,
    ),
    "optimizer.warmup_steps": Field(
        int, "steps over which the learning rate rises from 0", 200, 0, MAX_INT
    ),
    "optimizer.schedule": Field(
        str,
        "schedule of the learning rate after warm-up: 'cosine' or 'constant'",
        "cosine",
        choices=("constant", "cosine"),
    ),
    "optimizer.final_fraction": Field(
        float,
        "learning rate at the end of the cosine, as a fraction of optimizer.learning_rate",
        0.05,
        0,
        1,
    ),
    "optimizer.b1": Field(float, "decay of Adam's first moment", 0.9, 0, 1 - 1e-9),
    "optimizer.b2": Field(float, "decay of Adam's second moment", 0.98, 0, 1 - 1e-9),
    # With eps = 0, the zero gradients of tokens that never occur would cause a division by zero.
    "optimizer.eps": Field(
        float, "number added to the square root of Adam's second moment", 1e-8, 1e-30, 1
    ),
    "optimizer.clip_norm": Field(
        float,
        "maximum norm of the gradient; larger gradients are clipped to this norm",
        1.0,
        1e-12,
        INFINITE,
    ),
    "evaluation.every": Field(int, "steps between evaluations", 50),
    "evaluation.per_doubling": Field(
        int,
        "number of evaluations per doubling of the step, before the step evaluation.every",
        2,
        0,
        64,
    ),
    "checkpoints.every": Field(int, "steps between checkpoints of the parameters", 250),
    "checkpoints.per_doubling": Field(
        int,
        "number of checkpoints per doubling of the step, before the step checkpoints.every",
        1,
        0,
        64,
    ),
    "writers.tensorboard": Field(bool, "write event files of TensorBoard", True),
    "writers.progress": Field(bool, "show a progress bar on standard error", True),
    "mesh.trial": Field(int, "number of devices over which trials are split", 1),
    "mesh.data": Field(
        int, "number of devices over which rows are split; -1 means all remaining devices", -1
    ),
    "mesh.model": Field(int, "number of devices over which heads and neurons are split", 1),
    "mesh.fsdp": Field(
        bool, "whether weights and their moments are also split over the axis mesh.data", False
    ),
    "distributed.mode": Field(
        str,
        "how processes of a run on many hosts find each other: 'none' (one process), 'auto' (ask "
        "Slurm, Open MPI or Cloud TPU) or 'explicit' (by the fields below)",
        "none",
        choices=MODES,
    ),
    "distributed.coordinator_address": Field(
        str, "host:port of process 0, reachable from all hosts", ""
    ),
    "distributed.num_processes": Field(
        int, "number of processes; if the mode is 'auto', 0 allows any number", 0
    ),
    "distributed.process_id": Field(int, "index of this process, from 0 to num_processes - 1", -1),
    "distributed.timeout": Field(
        float, "seconds without a heartbeat after which a process counts as lost", 30, 5, 3600
    ),
}
"""Fields by dotted name. `schema` adds the fields of a task."""


def task_schema(name: str) -> dict[str, Field]:
    """Return all fields of a configuration with a given task.

    For a user-defined task, the group `task` contains only the field `task.name`.
    """
    own = task_fields.FIELDS.get(name, {})
    return FIELDS | {f"task.{key}": field for key, field in own.items()}


def schema(config: ConfigDict) -> dict[str, Field]:
    """Return all fields that a configuration may contain, including the fields of its task."""
    task = config.get("task")
    name = task.get("name") if isinstance(task, ConfigDict) else None
    return task_schema(name) if isinstance(name, str) else FIELDS


def open_groups(config: ConfigDict) -> tuple[str, ...]:
    """Return the groups that may contain undeclared fields.

    Only the group `task` of a user-defined task may contain such fields. The task's function
    `build` checks them.
    """
    return () if len(schema(config)) > len(FIELDS) else ("task",)


def is_field(config: ConfigDict, key: str) -> bool:
    """Return whether a configuration may contain a field named `key`."""
    return key in schema(config) or key.partition(".")[0] in open_groups(config)
