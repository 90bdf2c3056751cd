"""Composition in which single facts and chains teach different bridges.

    python -m implicit_reasoning train --config=configs/shadow.py:desk --workdir=DIR

Controls for: the inference from "decodable" to "used". Single facts come from table A, and chains
come from table B. After (e1, r1), the model is trained to predict the entity of table A (truth
`decoy`), but the answer of the chain follows from the entity of table B (truth e2). Lenses and
probes must find the decoy at r1, because the decoy is the training target at r1. A conclusion that
the model uses the decodable bridge is wrong by construction.

Published: nothing; this control was designed for this project.

What to expect: triples and train_ii reach 1.0. test_ii behaves as in `without_id_triples.py`, later
than in `composition.py`. test_oi, test_io and test_oo stay at chance, because no training row
depends on the `O` facts of table B. Results at `pocket` (three seeds, 5 minutes on one core, 6,000
steps): test_ii is .77, .28 and .43, and is still rising. Results at `desk` (one run, 30 minutes on
one core, 24,000 steps): test_ii is .38 and test_oi is .015.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "shadow"
    return config
