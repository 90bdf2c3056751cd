"""Composition with the relations before the entity: `(r1, r2, e1) -> e3`.

    python -m implicit_reasoning train --config=configs/relations_first.py:desk --workdir=DIR

Controls for: the position of each hop. The entity is the last token, so both hops must be computed
at the last position, in different layers. A state at r1 therefore cannot contain the bridge, and a
transcoder that spans several layers covers both hops. The model must gather the relations and then
look up two facts in sequence, which needs depth, so scales above `pocket` have at least 4 layers.

Published: no results for this order.

What to expect: training takes more steps than with "e r r". At `pocket`, with 2 layers, the model
may only memorize. Result at `pocket` (three seeds, 5 minutes on one core, 6,000 steps): test_ii is
.81, .46 and .35, and is still rising.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.order = "r r e"
    if scale != "pocket":
        config.model.n_layers = max(config.model.n_layers, 4)
    return config
