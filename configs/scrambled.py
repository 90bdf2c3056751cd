"""Chains with random answers: a model that can only memorise, with true single facts beside.

    python -m implicit_reasoning train --config=configs/scrambled.py:desk --workdir=DIR

Controls for: instruments that find composition where there is none. Single facts are true, so the
bridge at r1 is a training target and decodable; no answer of a chain follows from it.

Published: the house's own. To expect: triples and train_ii at 1.0, every test split of chains at
chance, 1 / n_entities, by construction and for ever. Found so at `pocket` (three seeds, 5 minutes
on one core).
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "scrambled"
    return config
