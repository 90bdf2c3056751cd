"""Composition with different fractions of `O` facts: how does exposure affect generalization?

    python -m implicit_reasoning train --config=configs/ood_ratio.py:desk_70 --workdir=DIR

The argument is a scale of `composition.py`, followed by the percentage of `O` facts: 20, 50 or 70.
The number of training chains *per `I` fact* (phi) is constant, unless there are too few chains.

Controls for: the effect of exposure on the generalization of first hops.

Published (Ye et al. 2025): test_oi rises eventually if 20% of the facts are `O`, and does not rise
if 70% are `O`.

What to expect: test_oi is higher if fewer facts are `O`. At `pocket` (three seeds, 5 minutes on one
core), test_oi is .21 - .24 with 20%, .14 - .17 with 50% and .09 - .18 with 70%. test_ii is .97 with
20%, .58 with 50% and .30 with 70%.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `paper`, with suffix `_50` or `_70`.

    Without a suffix, 20% of the facts are `O`.
    """
    size, _, percent = scale.partition("_")
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{size}").unlock()
    config.task.ood_fraction = choose(percent or "20", {"20": 0.2, "50": 0.5, "70": 0.7})
    # There are about (1 - ood) * degree all-I chains per fact; train on at most 90% of them.
    inside = (1 - config.task.ood_fraction) * config.task.out_degree * (1 - config.task.holdout)
    config.task.phi = min(config.task.phi, round(0.9 * inside, 1))
    return config
