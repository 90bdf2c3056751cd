"""Every field of a configuration that can be trained: its type, its bounds, what it means."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config import Field, flatten
from implicit_reasoning.config.schema import INFINITE
from implicit_reasoning.worlds.tasks.settings import SETTINGS

_MOST = 2**31 - 1

FIELDS: dict[str, Field] = {
    "seed": Field(int, "of initialisation, data order, dropout; the world has its own", 0, _MOST),
    "steps": Field(int, "updates; also the horizon of the learning rate", 1, _MOST),
    "batch_size": Field(int, "rows of an update", 1, _MOST),
    "order": Field(str, "'replacement', or 'epochs': every row once before any row twice"),
    "log_every": Field(int, "steps between rows of metrics.jsonl"),
    "resume_every": Field(int, "steps between saves of the full state"),
    "profile": Field(bool, "write a trace of a few early steps into profile/"),
    "task.name": Field(str, "a task of the lab, or package.module:function or file.py:function"),
    "model.n_layers": Field(int, "blocks with parameters", 1, 1_000),  # each is traced by itself
    "model.n_loops": Field(int, "times that the stack of blocks runs", 1, 1_000),
    "model.d_model": Field(int, "width of the residual", 1, 2**20),
    "model.n_heads": Field(int, "heads of an attention layer", 1, 2**20),
    "model.d_mlp": Field(int, "width of an MLP", 1, 2**20),
    "model.dropout": Field(float, "share of activations dropped while training", 0, 0.99),
    # Optional: the defaults of `model.Spec` hold, as in configurations from before these fields.
    "model.block": Field(str, "'gpt2', or package.module:Class or file.py:Class", optional=True),
    "model.head_width": Field(int, "dimensions of a head; 0: d_model / n_heads", optional=True),
    "model.act_fn": Field(str, "'gelu_new' or 'relu'", optional=True),
    "model.normalization": Field(str, "'LN' or 'none'", optional=True),
    "model.tied": Field(bool, "unembedding = embedding, transposed", optional=True),
    "model.unembed_bias": Field(bool, "whether logits have a bias", optional=True),
    "model.eps": Field(float, "of layer norms", optional=True),
    "model.init_std": Field(float, "of all weights at initialisation", optional=True),
    "model.dtype": Field(
        str, "of activations while training: 'float32' or 'bfloat16'", optional=True
    ),
    "model.precision": Field(
        str, "of matrix products while training: 'default', 'high' or 'highest'", optional=True
    ),
    "optimizer.learning_rate": Field(float, "after warm-up", 0, INFINITE),
    "optimizer.weight_decay": Field(
        float, "decoupled; on weights and embeddings, not on biases and norms", 0, INFINITE
    ),
    "optimizer.warmup_steps": Field(int, "over which the learning rate rises from 0", 0, _MOST),
    "optimizer.schedule": Field(str, "'cosine' or 'constant'"),
    "optimizer.final_fraction": Field(float, "of the learning rate, where the cosine ends", 0, 1),
    "optimizer.b1": Field(float, "decay of Adam's first moment", 0, 1 - 1e-9),
    "optimizer.b2": Field(float, "decay of Adam's second moment", 0, 1 - 1e-9),
    # 0 divides by zero where a token never occurs.
    "optimizer.eps": Field(float, "added to the root of Adam's second moment", 1e-30, 1),
    "optimizer.clip_norm": Field(float, "largest norm of the gradient", 1e-12, INFINITE),
    "evaluation.every": Field(int, "steps between evaluations"),
    "evaluation.per_doubling": Field(int, "log-spaced evaluations before that", 0, 64),
    "checkpoints.every": Field(int, "steps between kept parameters"),
    "checkpoints.per_doubling": Field(int, "log-spaced checkpoints before that", 0, 64),
    "writers.tensorboard": Field(bool, "write event files"),
    "writers.progress": Field(bool, "show a bar on standard error"),
    "mesh.trial": Field(int, "devices along the axis of trials"),
    "mesh.data": Field(int, "devices along the axis of rows; -1: all that are left"),
    "mesh.model": Field(int, "devices along the axis of heads and neurons"),
    "mesh.fsdp": Field(bool, "also split weights and their moments over `data`"),
    "distributed.mode": Field(str, "'none', 'auto' (ask Slurm, Open MPI, Cloud TPU), 'explicit'"),
    "distributed.coordinator_address": Field(str, "of process 0, host:port, seen from all hosts"),
    "distributed.num_processes": Field(int, "with 'auto' 0, or the number that there has to be"),
    "distributed.process_id": Field(int, "0 to num_processes - 1, another one on each host"),
    "distributed.timeout": Field(
        float, "seconds of silence after which a process counts as lost", 5, 3600
    ),
}
"""By dotted name; a task has more, see `schema`."""

REQUIRED = tuple(key for key, field in FIELDS.items() if not field.optional)


def schema(config: ConfigDict) -> dict[str, Field]:
    """The fields of a configuration, with those of its task where the lab knows them."""
    task = config.get("task")
    name = task.get("name") if isinstance(task, ConfigDict) else None
    own = SETTINGS.get(name, {}) if isinstance(name, str) else {}
    return FIELDS | {f"task.{key}": Field(kind, doc) for key, (kind, doc) in own.items()}


def open_groups(config: ConfigDict) -> tuple[str, ...]:
    """The groups whose fields are the user's: those of a task of the user, which `build` checks."""
    return () if len(schema(config)) > len(FIELDS) else ("task",)


def is_field(config: ConfigDict, key: str) -> bool:
    """Whether anything reads a field of this name."""
    return key in schema(config) or key.partition(".")[0] in open_groups(config)


def documentation(config: ConfigDict) -> dict[str, str]:
    """What the fields of a configuration mean, by dotted name, as far as that is known."""
    known: dict[str, Any] = schema(config)
    return {key: known[key].doc for key in flatten(config) if key in known}
