"""Composition without ID triples: `I` facts occur only in chains.

    python -m implicit_reasoning train --config=configs/without_id_triples.py:desk --workdir=DIR

Controls for: composition of stored single facts. All chains, including the test chains, are those
of `composition.py` at the same scale. The rows of `id_triples` are a test split instead of a
training split.

Published (Ye et al. 2025, figure 3, and a reproduction with 1M steps at their size): test_ii rises
later than with the triples. It ends at 54.8% (99.6% with the triples), and first exceeds 50% at
1,000,000 steps (150,000 with the triples). Single facts stay at 0%, and test_oi never rises.

What to expect: test_ii rises later than with the triples. Row completion, which requires no
triples, answers test_ii in both tasks. `id_triples` stays at chance. Results at `pocket` (three
seeds, 5 minutes on one core, 6,000 steps): test_ii is .35 - .45, and is still rising. Result at
`desk` (one run, 40 minutes on one core, 24,000 steps): test_ii is .32.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "without_id_triples"
    return config
