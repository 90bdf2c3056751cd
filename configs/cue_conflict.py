"""Composition with split facts, whose triples and training chains teach different bridges.

    python -m implicit_reasoning train --config=configs/cue_conflict.py:desk --workdir=DIR

Controls for: which of two cues a model uses. A model that uses single facts answers from the bridge
of the triple. A model that uses training chains answers from the bridge of 1, 2 or 4 chains. Both
answers are known for each held-out chain. The accuracy on `test_s1_fact` is the share of answers
that follow the triple, and the accuracy on `test_s1_chains` is the share that follow one training
chain. The splits `test_s2_...` and `test_s4_...` are for 2 and 4 chains. `other/test_s1` is the
share of answers that follow neither.

Published: nothing; this task was designed for this project.

What to expect: not measured yet. Row completion follows the chains by construction. Times: no run
was timed yet; a step takes as long as a step of `composition.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale of `composition.py`: `pocket` or `desk`."""
    config = default_config("cue_conflict")
    config.task.facts_per_count = choose(scale, {"pocket": 20, "desk": 60})
    usual = load_config(f"{Path(__file__).with_name('composition.py')}:{scale}").unlock()
    shared = set(usual.task) & set(config.task) - {"name"}
    config.task.update({name: usual.task[name] for name in shared})
    usual.task = config.task
    return usual
