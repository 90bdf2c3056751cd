"""Repeated random sequences `x1 x2 ... xn x1 x2 ...`, the standard task for induction heads.

    python -m implicit_reasoning train --config=configs/in_context.py:pocket --workdir=DIR

Controls for: reasoning from the context alone. Knowledge in the weights does not help with new
sequences. Instruments must therefore find attention heads that match and copy tokens, and must find
no facts.

Published: two layers are sufficient, and one layer is not (Elhage et al. 2021). The heads form in
an abrupt phase of training (Olsson et al. 2022).

What to expect: test_repeated closely follows train_repeated, with one jump. With
`--config.model.n_layers=1`, there is no jump. Times: measured only for `pocket`.
"""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `paper` (not published)."""
    config = default_config("in_context")
    config.model.d_model = 64
    config.model.d_mlp = 256
    config.optimizer.weight_decay = 0.1
    choose(scale, {"pocket": pocket, "desk": desk, "paper": paper})(config)
    return config


def pocket(config: ConfigDict) -> None:
    """Scale for first experiments: about 40 steps/s on two cores that were shared with other work.

    Results of one run with seed 0: test_repeated is .75 at 200 steps, .98 at 350 and 1.0 from 800
    on; train_repeated is the same.
    """
    config.steps = 4_000
    config.batch_size = 128


def desk(config: ConfigDict) -> None:
    """Scale with more tokens and longer sequences."""
    config.steps = 20_000
    config.task.n_tokens = 200
    config.task.min_length = 8
    config.task.max_length = 24
    config.task.n_train = 200_000
    config.model.d_model = 128
    config.model.d_mlp = 512
    config.evaluation.every = 250
    config.checkpoints.every = 1_000


def paper(config: ConfigDict) -> None:
    """Scale for accelerators."""
    desk(config)
    config.task.n_tokens = 1_000
    config.task.max_length = 50
    config.task.n_train = 500_000
    config.model.d_model = 256
    config.model.d_mlp = 1_024
