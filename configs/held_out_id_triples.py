"""Composition with held-out ID triples: 5% of the `I` facts occur only in chains.

    python -m implicit_reasoning train --config=configs/held_out_id_triples.py:desk --workdir=DIR

Controls for: whether training chains teach single facts. The facts of the test split
`held_out_id_triples` occur in training chains only. The facts of the training split `id_triples`
are also taught as triples. The chains are those of `composition.py`.

Published: Ye et al. 2025 ("held-out ID triples") have this split. Its published accuracy is not
listed here.

What to expect: with the order "e r r", the atomic prompt is a prefix of the chain, so the prompt
and the chain share the hidden state that represents the bridge. A model that answers test_ii may
therefore also answer the held-out facts. At `pocket` (three seeds, 5 minutes on one core), test_ii
is .98 - .997 and held-out facts are .96 - 1.00.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.name = "held_out_id_triples"
    config.task.held_out_fraction = 0.05  # fraction of I facts never taught as triples
    return config
