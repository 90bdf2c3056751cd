"""Single facts from one table, chains from another: a bridge that is decodable and not used.

    python -m implicit_reasoning train --config=configs/shadow.py:desk --workdir=DIR

Controls for: "what can be decoded is what is used". After (e1, r1) the model is trained to say the
entity of table A (truth `decoy`), while the chain's answer follows from that of table B (truth e2).
Lens and probes must find the decoy at r1, since that is its target there; whoever takes the
decodable bridge for the used one is wrong here by construction.

Published: the house's own. To expect: triples and train_ii at 1.0; test_ii as in
`without_id_triples.py`, later than in `composition.py`; test_oi, test_io and test_oo at chance
forever, as no row says what table B has there. At `pocket` (three seeds, 5 minutes on one core,
6,000 steps): test_ii .77, .28, .43, still rising. At `desk` (one run, 30 minutes on one core,
24,000 steps): .38, test_oi .015.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "shadow"
    return config
