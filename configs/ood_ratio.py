"""How many facts must be used in chains for the others to be? The share of `O` facts, varied.

    python -m implicit_reasoning train --config=configs/ood_ratio.py:desk_70 --workdir=DIR

The argument is the scale of `composition.py` and, after it, the percentage of `O` facts: 20, 50 or
70. The number of training chains *per `I` fact* stays (phi), up to the chains that there are.

Controls for: the generalisation of first hops as a matter of exposure.

Published (Ye et al. 2025): with .8/.2 (`I`/`O`) test_oi rises in the end, with .3/.7 it does not.
To expect: test_oi the higher, the fewer facts are `O`. At `pocket` (three seeds, 5 minutes on one
core): test_oi .21 - .24 at 20%, .14 - .17 at 50%, .09 - .18 at 70%; test_ii .97, .58, .30.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale, `pocket`, `desk` or `paper`, with `_50` or `_70` for more."""
    size, _, percent = scale.partition("_")
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{size}").unlock()
    config.task.ood_fraction = choose(percent or "20", {"20": 0.2, "50": 0.5, "70": 0.7})
    # All chains of I facts are about (1 - ood) * degree a fact: train on nine tenths at most.
    inside = (1 - config.task.ood_fraction) * config.task.out_degree * (1 - config.task.holdout)
    config.task.phi = min(config.task.phi, round(0.9 * inside, 1))
    return config
