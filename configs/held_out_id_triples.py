"""Can a fact that was only ever used in chains be said? 5% of the `I` facts are never taught alone.

    python -m implicit_reasoning train --config=configs/held_out_id_triples.py:desk --workdir=DIR

Controls for: whether training chains teach single facts. Splits `id_triples` (retained, trained on)
and `held_out_id_triples` (tested); the chains are those of `composition.py`.

Published: Ye et al. 2025 ("held-out ID triples") have the split; its figures are not at hand. To
expect: in "e r r" the state that must say a bridge for the atomic prompt is the one that the chain
passes through, so held-out facts may well be answered once test_ii is. At `pocket` (three seeds, 5
minutes on one core): test_ii .98 - .997, held-out facts .96 - 1.00.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "held_out_id_triples"
    config.task.held_out_fraction = 0.05  # share of I facts never taught as triples
    return config
