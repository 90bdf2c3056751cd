"""Complex comparison: compare entities whose facts are not taught but can be inferred.

    python -m implicit_reasoning train --config=configs/complex.py:desk --workdir=DIR

The training rows are the facts of `I` entities, 3% of the comparisons of two `I` entities, and 3%
of the comparisons of an `I` and an `O` entity (Wang et al. 2024, section 5). `test_hard` has pairs
whose answers follow from facts and comparisons together, but not from comparisons alone. The
docstring of the task `complex` has the exact rule.

Controls for: search over stored facts, at a depth that no training row requires.

Published: the grokked transformer is nearly perfect on test_hard (curve in figure 16). Language
models that retrieve the facts answer about a third correctly, which is chance.

What to expect here: unknown below `paper`. Compare test_hard with `win_rate`, which is .4 to .6. At
`pocket` (three seeds, 8 minutes on one core), test_ii is .88 - .90 and test_hard is .47 - .58 (36
rows).
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `paper`."""
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
