"""Composition with restricted second hops: 5% of the facts never occur as second hops in training.

    python -m implicit_reasoning train --config=configs/second_hop_restricted.py:desk --workdir=DIR

Controls for: the effect of the hop alone. `test_ii_sr` has chains whose second fact is never a
second hop in training. The fact occurs in training as a triple and as a first hop, and all entities
and relations occur in training. As published, there are no `O` facts, so the splits for `O` facts
are empty.

Published (Ye et al. 2025, section 2.4 and appendix D.1): test_ii_sr stays near 0. A reproduction
with 1M steps answers 2 of 3,000 chains of test_ii_sr correctly, at an accuracy of 99.6% on test_ii
and 99.8% on triples.

What to expect: the same as published. test_ii_sr is only as accurate as the shortcuts, whose most
frequent answers are sometimes correct by chance. Result at `pocket` (three seeds, 5 minutes on one
core): test_ii is .988 - .998 and test_ii_sr is .006 - .041.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "second_hop_restricted"
    config.task.restricted_fraction = 0.05  # fraction of I facts that are never a later hop
    config.task.ood_fraction = 0.0
    config.task.mixed_chains = False
    if scale == "paper":
        config.task.holdout = 0.005  # as published for this task
    return config
