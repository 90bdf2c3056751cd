"""Complex reasoning: compare entities whose facts were never taught, by what was said of them.

    python -m implicit_reasoning train --config=configs/complex.py:desk --workdir=DIR

Wang et al. 2024, section 5: facts of `I` entities, 3% of the comparisons of two `I` entities and of
an `I` and an `O` entity. `test_hard` asks for what follows from facts and comparisons together but
not from comparisons alone; its rule is in the docstring of the task.

Controls for: search over what is stored, at a depth that no training row shows.

Published: the grokked transformer is near perfect on test_hard (figure 16 has the curve); language
models given the facts by retrieval are right in about a third, which is chance. To expect here: not
known below `paper`; hold test_hard against `win_rate`, .4 to .6. At `pocket` (three seeds, 8
minutes on one core): test_ii .88 - .90, test_hard .47 - .58 (36 rows).
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale: `pocket`, `desk` or `paper`."""
    comparison = Path(__file__).with_name("comparison.py")
    config = load_config(f"{comparison}:{scale}").unlock()
    before, task = config.task, default_config("complex").task
    task.n_attributes, task.end_token = before.n_attributes, before.end_token
    task.share = choose(scale, {"pocket": 0.06, "desk": 0.04, "paper": 0.03})
    if scale != "pocket":
        task.n_entities, task.n_values = before.n_entities, before.n_values
    if scale == "paper":
        config.steps = 1_500_000
    config.task = task
    return config
