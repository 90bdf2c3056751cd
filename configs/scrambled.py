"""Composition with true single facts and random answers of chains, which can only be memorized.

    python -m implicit_reasoning train --config=configs/scrambled.py:desk --workdir=DIR

Controls for: instruments that report composition although the model does not compose. Single facts
are true, so the bridge is a training target at r1 and can be decoded there. The answers of chains
do not follow from the bridge.

Published: nothing; this control was designed for this project.

What to expect: triples and train_ii reach 1.0. Every test split of chains stays at chance, 1 /
n_entities, by construction. Result at `pocket` (three seeds, 5 minutes on one core): as expected.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "scrambled"
    return config
