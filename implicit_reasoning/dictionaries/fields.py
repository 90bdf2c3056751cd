"""Every field of a configuration of dictionaries: its type, its bounds, what it means."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import Field, flatten, from_json, schema_faults
from implicit_reasoning.config.schema import INFINITE
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json

_MOST = 2**31 - 1

FIELDS: dict[str, Field] = {
    "name": Field(str, "results are kept in dictionaries/<name>"),
    "kind": Field(str, "what is read and written: autoencoder, transcoder, ...; see kinds.py"),
    "variant": Field(str, "architecture: topk, relu, ..., see variants/; or an import path"),
    "read": Field(tuple, "sites that are read; none: hook_resid_post or ln2 of every block"),
    "write": Field(tuple, "sites that are written, one for each that is read"),
    "positions": Field(tuple, "names of positions; none: all"),
    "sparsities": Field(tuple, "of every site, checkpoint and seed"),
    "width": Field(int, "features; of cross_layer in all layers together", 1, _MOST),
    "seeds": Field(int, "dictionaries of each sparsity, with other initialisations", 1, _MOST),
    "checkpoints": Field(int, "so many, evenly over the run's schedule", 1, _MOST),
    "steps": Field(tuple, "or these very steps"),
    "start": Field(str, "of each checkpoint's dictionaries: cold, forwards or backwards"),
    "normalize": Field(bool, "states to a mean norm of sqrt(width); folded back in the end"),
    "baselines": Field(bool, "measure what dictionaries have to beat, too"),
    "log_every": Field(int, "steps; also how often progress moves", 1, _MOST),
    "resume_every": Field(int, "steps between saves of the full state", 1, _MOST),
    "progress": Field(bool, "show a bar on standard error"),
    # Optional, as configurations from before these fields: `TrainingSettings` has the defaults.
    "training.steps": Field(int, "steps in all", 1, _MOST, True),
    "training.batch_size": Field(int, "states of a step", 1, _MOST, True),
    "training.learning_rate": Field(float, "after warm-up, before decay", 0, INFINITE, True),
    "training.warmup_steps": Field(int, "steps over which the learning rate rises", 0, _MOST, True),
    "training.decay_steps": Field(
        int, "last steps, over which the learning rate falls", 0, _MOST, True
    ),
    "training.sparsity_warmup_steps": Field(
        int, "steps over which a penalty's coefficient rises", 0, _MOST, True
    ),
    "training.b1": Field(float, "decay of Adam's first moment", 0, 1 - 1e-9, True),
    "training.b2": Field(float, "decay of Adam's second moment", 0, 1 - 1e-9, True),
    "training.clip_norm": Field(float, "largest norm of the gradient", 1e-12, INFINITE, True),
    "training.dead_after": Field(int, "steps without firing", 0, _MOST, True),
    "training.bias_at_mean": Field(
        bool, "the decoder's bias begins at the mean of targets", optional=True
    ),
    "training.unit_decoder": Field(bool, "keep decoder rows at norm 1", optional=True),
    "training.frozen_decoder": Field(
        bool, "leave the decoder as it was drawn: a baseline", optional=True
    ),
    "training.resample_every": Field(
        int, "steps between replacing dead features; 0: never", 0, _MOST, True
    ),
}
"""By dotted name; `options` has those of the variant."""


_RENAMED = {
    "batch": "batch_size",
    "warm_up": "warmup_steps",
    "decay": "decay_steps",
    "sparsity_warm_up": "sparsity_warmup_steps",
    "beta1": "b1",
    "beta2": "b2",
    "clip": "clip_norm",
}
"""Fields of `training` by the names that they had before 2026-11-29."""


def with_current_names(config: ConfigDict) -> tuple[ConfigDict, dict[str, str]]:
    """A configuration whose fields have the names of today, and the names that were replaced."""
    given = config.get("training")
    old = {name: _RENAMED[name] for name in given or () if name in _RENAMED}
    if not isinstance(given, ConfigDict) or not old:
        return config, {}
    training = {old.get(name, name): value for name, value in given.items()}
    return ConfigDict({**config.to_dict(), "training": training}).lock(), old


def read_config(path: Path) -> ConfigDict:
    """The configuration of a set of dictionaries on disk, with the names of today."""
    return with_current_names(from_json(read_json(path)))[0]


def check_config(config: ConfigDict) -> None:
    """Raise one `InputError` that lists every field that is missing, unknown or out of bounds.

    The options of a variant are checked where it is made.
    """
    faults = schema_faults(flatten(config), FIELDS, ("options",))
    faults += [f"{group} is missing" for group in ("options", "training") if group not in config]
    if faults:
        raise InputError("the dictionaries cannot be trained: " + "; ".join(faults))


def documentation(config: ConfigDict) -> dict[str, str]:
    """What the fields of a configuration mean, by dotted name."""
    return {key: FIELDS[key].doc for key in flatten(config) if key in FIELDS}
