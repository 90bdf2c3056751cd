"""Modular addition `[a, b, =] -> (a + b) mod p`: grokking with a known circuit.

    python -m implicit_reasoning train --config=configs/modular_addition.py:pocket --workdir=DIR

Scales: `pocket` and `desk` (the recipe of Nanda et al. with p 53 and 97), `paper` (Nanda et al.
2023: p 113, one layer, no layer norm, 30% of the pairs, full batch, weight decay 1) and `power`
(Power et al. 2022: p 97, two layers, half of the pairs, batch size 512).

Controls for: errors of instruments. The mechanism is known from published work (rotations by a few
frequencies).

Published (`paper`, one step per epoch): the training pairs are memorized by 1,400 epochs. The
accuracy on test_pairs jumps during cleanup, between 9,400 and 14,000 epochs. Published (`power`):
more weight decay leads to earlier generalization, and less data leads to later generalization.

What to expect: memorization within a few hundred steps, then a long plateau, then generalization.
The shortcut `commuted` answers a fraction `train_fraction` of test_pairs from the start. Times:
measured only for `pocket`.
"""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk`, `paper` or `power`."""
    config = default_config("modular_addition")
    nanda(config)
    choose(scale, {"pocket": pocket, "desk": desk, "paper": nanda, "power": power})(config)
    return config


def nanda(config: ConfigDict) -> None:
    """Configuration of Nanda et al. 2023.

    The weights are initialized with standard deviation 1 / sqrt(width). The paper does not mention
    a separate initialization for biases.
    """
    config.steps = 40_000
    config.order = "epochs"
    full_batch(config)

    config.model.n_layers = 1
    config.model.d_model = 128
    config.model.n_heads = 4
    config.model.d_mlp = 512
    config.model.act_fn = "relu"
    config.model.normalization = "none"
    config.model.init_std = 128**-0.5

    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1.0
    config.optimizer.warmup_steps = 10
    config.optimizer.schedule = "constant"
    config.optimizer.clip_norm = 1e9  # no clipping

    config.evaluation.every = 100
    config.checkpoints.every = 500


def pocket(config: ConfigDict) -> None:
    """Scale for two CPU cores: 12 to 26 steps/s on two cores that were shared with other work.

    The eps of Adam is larger than the default of 1e-8. With the default, the training loss falls to
    1e-7, where gradients are rounding errors, and jumps to .01 to .04 every 1,400 steps (one run).

    Results of one run with seed 0: train_pairs is 1.0 from 300 steps on, when test_pairs is .11.
    test_pairs is .49 at 3,900 steps, .88 at 4,800, .99 at 5,700 and .996 at 8,000. With an eps of
    1e-8, it is .53 at 5,000 steps and .985 at 8,000. The instrument `fourier_progress` shows the
    phases of the paper. The excluded loss is lowest at 600 steps (.11). At 3,000 steps, the
    restricted loss is .05 and the test loss is 8.9. The key frequencies are 1, 13, 15, 18 and 23.
    """
    config.steps = 8_000
    config.optimizer.eps = 1e-6
    config.task.modulus = 53
    config.task.train_fraction = 0.4
    full_batch(config)


def desk(config: ConfigDict) -> None:
    """Scale close to the published size."""
    config.steps = 20_000
    config.task.modulus = 97
    full_batch(config)


def power(config: ConfigDict) -> None:
    """Configuration of Power et al. 2022: a two-layer decoder with layer norms, and minibatches."""
    config.steps = 100_000
    config.task.modulus = 97
    config.task.train_fraction = 0.5
    config.batch_size = 512
    config.model.n_layers = 2
    config.model.normalization = "LN"
    config.model.init_std = 0.02


def full_batch(config: ConfigDict) -> None:
    """Set the batch size to the number of training rows."""
    config.batch_size = round(config.task.train_fraction * config.task.modulus**2)
