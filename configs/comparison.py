"""Comparison: learn facts `(entity, attribute) -> value`, then state which of two values is larger.

    python -m implicit_reasoning train --config=configs/comparison.py:desk --workdir=DIR

Controls for: reasoning that is not a chain. In this task of Wang et al. 2024 (section 4), a model
can look up the two facts in parallel. Composition requires lookups in sequence.

Published accuracies (phi 7.2, figure 1, right): train is .99 at 10,000 steps; test_ii is .86 at
2,000, .90 at 10,000 and 1.0 at 340,000; test_oo is .80 at 4,000 and .99 at 340,000. Unlike
composition, comparison generalizes out of distribution.

What to expect here: test_ii soon reaches the accuracy of the shortcut `win_rate`, and later slowly
approaches 1. At `pocket` (three seeds, 9 minutes on one core, 6,000 steps), test_ii is .82 - .86,
equal to the shortcut, and test_oo is .56 - .66, above the shortcut (.45).
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    sizes = {"pocket": (100, 5, 10), "desk": (300, 10, 20), "paper": (1_000, 20, 20)}
    task = config.task = default_config("comparison").task
    task.n_entities, task.n_attributes, task.n_values = choose(scale, sizes)
    if scale == "paper":
        config.steps = 400_000
        task.mixed_chains = False  # Wang et al. test no mixed pairs
        task.end_token = True
    return config
