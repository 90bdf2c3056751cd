"""Composition with the relations before the entity: `(r1, r2, e1) -> e3`, all on one position.

    python -m implicit_reasoning train --config=configs/relations_first.py:desk --workdir=DIR

Controls for: hops that sit at different positions. Nothing is known of the entity before the last
position, so both hops must happen there, one above the other: what instruments see of hop 2 cannot
have been computed at r1, and a transcoder that skips layers sees both hops. Two look-ups in a row,
after the relations were gathered, want depth: at least 4 layers beyond `pocket`.

Published: nothing in this order. To expect: slower than "e r r" in steps; at `pocket` scale, with 2
layers, possibly memorisation only. Found at `pocket` (three seeds, 5 minutes on one core, 6,000
steps): test_ii .81, .46, .35, still rising.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.order = "r r e"
    if scale != "pocket":
        config.model.n_layers = max(config.model.n_layers, 4)
    return config
