"""Is a fact that the model knows and uses as a first hop of use as a second? 5% are never shown so.

    python -m implicit_reasoning train --config=configs/second_hop_restricted.py:desk --workdir=DIR

Controls for: the place in the query as the only novelty. `test_ii_sr` has chains whose second fact
is never a second hop in training; entities, relations, the fact alone and its use as a first hop
are all seen. As published there are no `O` facts; the splits that would hold them are empty.

Published (Ye et al. 2025, section 2.4 and appendix D.1; a reproduction at 1M steps: 2 of 3,000
right, while test_ii is at 99.6% and triples at 99.8%): test_ii_sr stays at the floor. To expect:
the same, at the shortcuts' height (modal answers are right now and then by luck). Found at `pocket`
(three seeds, 5 minutes on one core): test_ii .988 - .998, test_ii_sr .006 - .041.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "second_hop_restricted"
    config.task.restricted_fraction = 0.05  # share of I facts that are never a later hop
    config.task.ood_fraction = 0.0
    config.task.mixed_chains = False
    if scale == "paper":
        config.task.holdout = 0.005  # as published for this one
    return config
