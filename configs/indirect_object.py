"""Indirect object: answer the one of two names that a prompt does not repeat.

    python -m implicit_reasoning train --config=configs/indirect_object.py:pocket --workdir=DIR

Example: `. Mary . John . John . . to -> Mary`, where points are random filler tokens. The task is
made for instruments of attention heads. The truth says where the answer, the repeated name and its
duplicate are.

Controls for: heads that attend to a fixed position or to the first name. Names are at random
positions, and the answer comes first (ABBA) or second (BABA) equally often. The test rows have
pairs of names that are never trained on together.

Published (GPT-2 small, sentences): a circuit of 26 heads in seven classes (Wang et al. 2022). A
symbolic version of the task needs one layer with two heads (Adhikari 2025).

What to expect: one of the two names is answered first, so test_names has a plateau (.41 to .5).
Then the repeated name is told from the other. test_names lags behind train_names. Times: measured
only for `pocket`.
"""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket` or `desk`."""
    config = default_config("indirect_object")
    config.batch_size = 128
    config.model.d_model = 64
    config.model.d_mlp = 256
    config.optimizer.weight_decay = 1.0
    choose(scale, {"pocket": pocket, "desk": desk})(config)
    return config


def pocket(config: ConfigDict) -> None:
    """Scale for first experiments: 1 to 2 minutes on two cores that were shared with other work.

    Results of three runs: test_names is .95 from step 1,100 to 1,250 on and .99 to 1.0 at the end.
    train_names is .98 to 1.0 at these steps and 1.0 at the end.
    """
    config.steps = 3_000


def desk(config: ConfigDict) -> None:
    """Scale with more names and longer prompts."""
    config.steps = 10_000
    config.task.n_names = 200
    config.task.n_fillers = 100
    config.task.prompt_length = 15
    config.task.n_train = 200_000
    config.model.d_model = 128
    config.model.d_mlp = 512
