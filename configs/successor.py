"""Successor: continue one of two series of ordered tokens that are mixed in a prompt.

    python -m implicit_reasoning train --config=configs/successor.py:pocket --workdir=DIR

Example: `a3 b9 a4 b0 a5 a6 next_a -> a7`. The task is made for instruments of attention heads. The
truth columns `source_position` and `source_token` say which token a head must move to the last
position, and `value` says its number in the order of its alphabet.

Controls for: heads that attend to a fixed position. The position of the source varies. So does the
number of tokens before it in its run, so no earlier token of the run determines the answer. The
test rows have pairs of last tokens that are never trained on.

Published (language models, not this task): models from 31 million parameters on have heads that
increment numbers, months and days (Gould et al. 2023).

What to expect: test_runs follows train_runs, without a plateau. From the last position, all heads
attend mainly to the source (.57 to .91 on average in three runs). Times: measured only for
`pocket`.
"""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket` or `desk`."""
    config = default_config("successor")
    config.batch_size = 128
    config.model.d_model = 64
    config.model.d_mlp = 256
    config.optimizer.weight_decay = 0.1
    choose(scale, {"pocket": pocket, "desk": desk})(config)
    return config


def pocket(config: ConfigDict) -> None:
    """Scale for first experiments: less than a minute on two cores that were shared with others.

    Results of three runs: test_runs is .31 to .38 at 75 steps, .95 to 1.0 at 150, and 1.0 at the
    end. train_runs is .39 to .44 at 75 steps and .98 to .99 at 150.
    """
    config.steps = 600
    config.evaluation.every = 25
    config.checkpoints.every = 50


def desk(config: ConfigDict) -> None:
    """Scale with more alphabets and longer runs."""
    config.steps = 6_000
    config.task.alphabets = (7, 10, 12, 26, 31, 60)
    config.task.prompt_length = 8
    config.task.n_train = 200_000
    config.model.d_model = 128
    config.model.d_mlp = 512
