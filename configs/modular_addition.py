"""Modular addition, `[a, b, =] -> (a + b) mod p`: grokking where the circuit is known.

    python -m implicit_reasoning train --config=configs/modular_addition.py:pocket --workdir=DIR

Scales: `pocket` and `desk` (p 53 and 97, in Nanda's recipe), `paper` (Nanda et al. 2023: p 113, one
layer, no layer norm, 30% of the pairs, the full batch, weight decay 1) and `power` (Power et al.
2022: p 97, two layers, half of the pairs, batch 512).

Controls for: instruments, on a mechanism that others have taken apart (rotations by few
frequencies). Published (`paper`): memorised by 1,400 epochs; the accuracy jump on test_pairs comes
in the clean-up, between 9,400 and 14,000; an epoch is a step. `power`: more weight decay is faster,
less data is later.
To expect: memorising within some hundred steps, then a long plateau that ends by itself; `commuted`
answers train_fraction of test_pairs from the start. Times: not measured, but for `pocket`.
"""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale: `pocket`, `desk`, `paper` or `power`."""
    config = default_config("modular_addition")
    nanda(config)
    choose(scale, {"pocket": pocket, "desk": desk, "paper": nanda, "power": power})(config)
    return config


def nanda(config: ConfigDict) -> None:
    """Nanda et al. 2023. Their weights start at 1 / sqrt(width); biases are not said to differ."""
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
    config.optimizer.clip_norm = 1e9  # not clipped

    config.evaluation.every = 100
    config.checkpoints.every = 500


def pocket(config: ConfigDict) -> None:
    """Small enough for two cores: about 50 steps/s on two that were shared with other work.

    One run, seed 0: train_pairs .95 at 100 steps and 1.0 from 300 on, when test_pairs was at .08;
    test_pairs .52 at 4,900 and .87 at 5,900, where the run ended.
    """
    config.steps = 8_000
    config.task.modulus = 53
    config.task.train_fraction = 0.4
    full_batch(config)


def desk(config: ConfigDict) -> None:
    """Nearly the published size."""
    config.steps = 20_000
    config.task.modulus = 97
    full_batch(config)


def power(config: ConfigDict) -> None:
    """Power et al. 2022: a decoder of two layers with layer norms, and minibatches."""
    config.steps = 100_000
    config.task.modulus = 97
    config.task.train_fraction = 0.5
    config.batch_size = 512
    config.model.n_layers = 2
    config.model.normalization = "LN"
    config.model.init_std = 0.02


def full_batch(config: ConfigDict) -> None:
    """Every training row at every step."""
    config.batch_size = round(config.task.train_fraction * config.task.modulus**2)
