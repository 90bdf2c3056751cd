"""Must single facts be taught for chains of them to be answered? Here the `I` ones never are.

    python -m implicit_reasoning train --config=configs/without_id_triples.py:desk --workdir=DIR

Controls for: composition of stored single facts. The chains, tested ones included, are those of
`composition.py` at the same scale; only the rows of `id_triples` are missing from training, and are
tested instead.

Published (Ye et al. 2025, figure 3, and a reproduction of 1M steps at their size): still reaches
test_ii, later - 54.8% against 99.6% with the triples, .5 first passed at 1,000,000 steps against
150,000; single facts stay at 0%; test_oi never rises. To expect: the same order, as row completion,
which needs no triple, answers test_ii in both arms; `id_triples` at chance. At `pocket` (three
seeds, 5 minutes on one core, 6,000 steps): test_ii .35 - .45, still rising. At `desk` (one run, 40
minutes on one core, 24,000 steps): .32.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "without_id_triples"
    return config
