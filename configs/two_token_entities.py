"""Composition with two-token entities: each entity is a unique pair of a first and a last name.

    python -m implicit_reasoning train --config=configs/two_token_entities.py:desk --workdir=DIR

Controls for: results that hold only for bridges of one token. The answer is a first name and a last
name, and counts as correct only if both names are correct. The second token of the bridge is never
an input of the chain, so only a probe can show whether a hidden state contains this token.

Published (Wang et al. 2024, appendix C, phi 12.6): a larger token multiplicity delays
generalization but does not prevent it. Token multiplicity is the number of entities per name, such
as 40 for 2,000 entities with 50 names. The second token of the bridge becomes perfectly decodable
at r1.

What to expect: the same curves as for `composition.py`, but later. Result at `pocket` (three seeds,
7 minutes on one core, 6,000 steps): test_ii is .03 - .05, so the run is too short for
generalization.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    names = {"pocket": 20, "desk": 25, "paper": 50}  # multiplicity 5, 10, 40
    config.task.names = choose(scale, names)
    if scale == "paper":
        config.task.phi = 12.6
    return config
