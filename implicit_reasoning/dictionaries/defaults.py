"""What dictionaries are trained when nothing else is asked for.

    python -m implicit_reasoning dictionaries --workdir=runs/pocket
    python -m implicit_reasoning dictionaries --workdir=runs/pocket \
        --config=implicit_reasoning.dictionaries.defaults:transcoder --config.sparsities=4,8

Residuals after every block, or with another argument transcoders of every MLP, three sparsities,
four checkpoints: at `pocket` 24 dictionaries.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from implicit_reasoning.dictionaries.steps import TrainingSettings

ARGUMENTS = ("autoencoder", "transcoder", "skip_transcoder", "cross_layer", "crosscoder")


def get_config(kind: str = "autoencoder") -> ConfigDict:
    """The default configuration of a kind."""
    config = ConfigDict()
    config.name = kind  # results are kept in dictionaries/<name>
    config.kind = kind  # see kinds.py
    config.variant = "topk"  # see variants/, or the import path of another
    config.options = ConfigDict()  # of the variant, as far as it has them; None: its own default
    config.options.aux = None  # topk, batch_topk, matryoshka: coefficient of AuxK
    config.options.widths = None  # matryoshka: of the nested dictionaries
    config.options.mode = None  # jumprelu: step or tanh
    config.options.threshold = None  # jumprelu: at the start
    config.options.bandwidth = None  # jumprelu: of the estimator
    config.options.revive = None  # jumprelu: coefficient of dead features' distance
    # What is read; with nothing here every block's hook_resid_post, or for transcoders (and then
    # written to hook_mlp_out) every block's ln2.hook_normalized.
    config.read = ()
    config.write = ()  # one for each that is read; of autoencoders the same, so left empty
    config.positions = ()  # names of positions; all, when empty, each of the same weight
    config.sparsities = (4.0, 8.0, 16.0)  # of every site, checkpoint and seed
    config.width = 512  # features; of cross_layer in all layers together
    config.seeds = 1
    config.checkpoints = 4  # evenly over the run's schedule, step 0 and the last among them
    config.steps = ()  # or these very steps
    # Every checkpoint's dictionaries from the start ("cold"), or from those of the one before
    # ("forwards") or after ("backwards"), which makes features look older than they are.
    config.start = "cold"
    config.normalize = True  # states to a mean norm of sqrt(width); folded back in the end
    config.training = ConfigDict(dataclasses.asdict(TrainingSettings(steps=600, batch_size=512)))
    config.training.learning_rate = 4e-3
    config.training.warmup_steps = 50
    config.training.decay_steps = 200
    config.training.dead_after = 100
    config.baselines = True  # measured beside them, see baselines.py
    config.log_every = 100  # steps; also how often progress moves
    config.resume_every = 1000  # steps; a signal saves as well
    config.progress = True  # a bar on standard error
    return config
