"""Entities of two tokens: an ordered pair of a first and a last name, no two entities alike.

    python -m implicit_reasoning train --config=configs/two_token_entities.py:desk --workdir=DIR

Controls for: bridges that are one token of the vocabulary. The answer is written first name, last
name, and counts only if both are right; the bridge's second token is nowhere an input of the chain,
so whether it is present in a state is a question for a probe.

Published (Wang et al. 2024, appendix C, phi 12.6): a larger token multiplicity (entities a name;
2,000 entities with 50 names: 40) delays generalisation and never prevents it; the second token of
the bridge becomes perfectly decodable at r1. To expect: the curves of `composition.py`, later. At
`pocket` (three seeds, 7 minutes on one core, 6,000 steps): test_ii .03 - .05; not reached.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    names = {"pocket": 20, "desk": 25, "paper": 50}  # multiplicity 5, 10, 40
    config.task.names = choose(scale, names)
    if scale == "paper":
        config.task.phi = 12.6
    return config
