"""Greater than: end a span of years with any year that is greater than its start.

    python -m implicit_reasoning train --config=configs/greater_than.py:pocket --workdir=DIR

Example: `century_3 32 century_3 -> 57`, as in "from the year 1732 to the year 17". The task is made
for instruments of attention heads and neurons. The truth column `start` is what a head must move to
the last position, from `source_position`.

Controls for: tasks with one right answer. All years after the start are right, and the target of a
row is one of them. The accuracy therefore stays low. The measure is the column
`probability_difference`: the probability of the right years minus that of the wrong years.

Published (GPT-2 small, sentences): heads move the start year to the last position, and the last
MLPs raise the probability of greater years (Hanna et al. 2023). The probability difference is .88
(measured by Dunefsky et al. 2024).

What to expect: the probability difference rises fast to .9 and then slowly, because the years just
after the start, and starts at the end of a century, take longest. Held-out pairs of a century and a
start are like trained ones. Times: measured only for `pocket`.
"""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket` or `desk`."""
    config = default_config("greater_than")
    config.batch_size = 128
    config.model.d_model = 64
    config.model.d_mlp = 256
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    choose(scale, {"pocket": pocket, "desk": desk})(config)
    return config


def pocket(config: ConfigDict) -> None:
    """Scale for first experiments: 1 to 2 minutes on two cores that were shared with other work.

    Results of three runs: the probability difference of test_years is .95 from step 1,900 to 2,450
    on and .97 at the end; that of train_years is the same.
    """
    config.steps = 6_000


def desk(config: ConfigDict) -> None:
    """Scale with more centuries, longer training and a wider model."""
    config.steps = 20_000
    config.task.n_centuries = 20
    config.task.rows_per_start = 200
    config.model.d_model = 128
    config.model.d_mlp = 512
    config.optimizer.learning_rate = 1e-3
