"""Define and check the fields of a configuration of dictionaries."""

from __future__ import annotations

import re
from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import (
    complete,
    flatten,
    from_json,
    schema_faults,
    with_current_fields,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.field import INFINITE, MAX_INT, Field
from implicit_reasoning.files import FORMAT_VERSION, check_format, read_json

FORMAT = 1
"""Format version of `config.json` and `members.json`. It stays the same if a field is added."""

FIELDS: dict[str, Field] = {
    "name": Field(str, "name of the set; results are saved in dictionaries/<name>", "autoencoder"),
    "architecture": Field(
        str,
        "autoencoder, transcoder, skip_transcoder, crosscoder or cross_layer",
        "autoencoder",
    ),
    "activation_fn": Field(
        str,
        "activation function, such as topk or relu (see activations/), or an import path",
        "topk",
    ),
    "options.aux": Field(
        float, "topk, batch_topk, matryoshka: coefficient of AuxK", None, 0, INFINITE, before=None
    ),
    "options.widths": Field(
        tuple, "matryoshka: widths of the nested dictionaries", None, before=None
    ),
    "options.mode": Field(str, "jumprelu: sparsity penalty, step or tanh", None, before=None),
    "options.threshold": Field(
        float, "jumprelu: initial threshold", None, 0, INFINITE, before=None
    ),
    "options.bandwidth": Field(
        float, "jumprelu: bandwidth of the gradient estimator", None, 1e-12, INFINITE, before=None
    ),
    "options.revive": Field(
        float,
        "jumprelu: coefficient of a penalty that moves dead features towards their thresholds",
        None,
        0,
        INFINITE,
        before=None,
    ),
    "read": Field(
        tuple,
        "hook sites that dictionaries read; empty: hook_resid_post of every block, or "
        "ln2.hook_normalized of every block for transcoders",
        (),
    ),
    "write": Field(tuple, "hook sites that transcoders write, one for each site in read", ()),
    "positions": Field(
        tuple, "names of the positions to train on, with equal weights; empty: all", ()
    ),
    "sparsities": Field(
        tuple,
        "sparsities; one dictionary for each sparsity, site, checkpoint and seed",
        (4.0, 8.0, 16.0),
    ),
    "width": Field(
        int, "number of features; for cross_layer, the total of all layers", 512, 1, MAX_INT
    ),
    "seeds": Field(
        int, "number of dictionaries per sparsity, with different initialisations", 1, 1, MAX_INT
    ),
    "checkpoints": Field(
        int,
        "number of checkpoints, spaced evenly over the run's schedule, with step 0 and the last "
        "step",
        4,
        1,
        MAX_INT,
    ),
    "steps": Field(
        tuple, "training steps of the checkpoints; empty: `checkpoints` selects them", ()
    ),
    "start": Field(
        str,
        "initial parameters of the dictionaries of a checkpoint: 'cold' (random), 'forwards' "
        "(from the previous checkpoint) or 'backwards' (from the next checkpoint); 'forwards' "
        "and 'backwards' make features look older than they are",
        "cold",
        choices=("cold", "forwards", "backwards"),
    ),
    "normalize": Field(
        bool,
        "scale states to a mean norm of sqrt(width); the scale is folded into the weights after "
        "training",
        True,
    ),
    "baselines": Field(bool, "also measure baselines", True),
    "log_every": Field(
        int, "steps between log rows and updates of the progress bar", 100, 1, MAX_INT
    ),
    "resume_every": Field(int, "steps between saves of the full training state", 1_000, 1, MAX_INT),
    "progress": Field(bool, "show a progress bar on standard error", True),
    # A saved configuration that lacks one of these fields was trained with the value of `before`.
    "training.steps": Field(int, "number of training steps", 600, 1, MAX_INT, before=2_000),
    "training.batch_size": Field(int, "states per step", 512, 1, MAX_INT, before=1_024),
    "training.learning_rate": Field(
        float, "learning rate after warm-up and before decay", 4e-3, 0, INFINITE, before=3e-4
    ),
    "training.warmup_steps": Field(
        int, "steps over which the learning rate rises", 50, 0, MAX_INT, before=0
    ),
    "training.decay_steps": Field(
        int, "last steps, over which the learning rate falls", 200, 0, MAX_INT, before=0
    ),
    "training.sparsity_warmup_steps": Field(
        int, "steps over which a penalty's coefficient rises", 0, 0, MAX_INT, before=0
    ),
    "training.b1": Field(float, "decay of Adam's first moment", 0.9, 0, 1 - 1e-9, before=0.9),
    "training.b2": Field(float, "decay of Adam's second moment", 0.999, 0, 1 - 1e-9, before=0.999),
    "training.clip_norm": Field(
        float, "largest norm of the gradient", 1.0, 1e-12, INFINITE, before=1.0
    ),
    "training.dead_after": Field(
        int,
        "a feature is dead after more than this number of steps without activity",
        100,
        0,
        MAX_INT,
        before=1_000,
    ),
    "training.bias_at_mean": Field(
        bool, "initialize the decoder bias to the mean of the targets", True, before=True
    ),
    "training.unit_decoder": Field(bool, "keep decoder rows at norm 1", False, before=False),
    "training.frozen_decoder": Field(
        bool, "keep the decoder at its random initialization; a baseline", False, before=False
    ),
    "training.resample_every": Field(
        int, "steps between resamplings of dead features; 0: never", 0, 0, MAX_INT, before=0
    ),
}
"""Fields by dotted name. The `options` of a user's activation function are not listed."""


def schema(config: ConfigDict) -> dict[str, Field]:
    """Return the definitions of all fields of a configuration of dictionaries."""
    return FIELDS


def completed(config: ConfigDict) -> ConfigDict:
    """Return a locked copy of a configuration in which missing fields are filled in.

    The filled-in values reproduce the behavior of the package version that wrote the
    configuration.
    """
    return complete(config, FIELDS)


def with_current_names(config: ConfigDict) -> ConfigDict:
    """Return a configuration with current field names, and print a message for each old name."""
    return with_current_fields(config, FIELDS)


def read_config(path: Path) -> ConfigDict:
    """Read the configuration of a saved set of dictionaries, and fill in missing fields.

    Raises:
      InputError: the format version of the file is newer than `FORMAT`.
    """
    kept = read_json(path)
    if isinstance(kept, dict):
        check_format(path, kept.pop(FORMAT_VERSION, 1), FORMAT)
    return completed(with_current_names(from_json(kept)))


def check_config(config: ConfigDict) -> None:
    """Raise an `InputError` if fields are missing, unknown or out of bounds.

    The message lists all such fields. This function does not check the options of a user-defined
    activation function, and does not compare sparsities with the width. `resolved.resolve` checks
    these later.
    """
    faults = schema_faults(flatten(config), FIELDS, ("options",))
    faults += [f"{group} is missing" for group in ("options", "training") if group not in config]
    if not faults:
        # The name becomes the name of a folder in the run.
        if not re.fullmatch(r"[^/\\\0]+", config.name) or config.name in (".", ".."):
            faults.append(
                f"name is {config.name!r}; it must be the name of a folder, without / or \\"
            )
        if not config.sparsities:
            faults.append("sparsities is empty; it must contain at least one number")
    if faults:
        raise InputError("the configuration of dictionaries is invalid: " + "; ".join(faults))
