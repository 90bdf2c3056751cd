"""Composition with cold facts: does a model use single facts, or evidence from chains?

    python -m implicit_reasoning train --config=configs/ladder.py:pocket --workdir=DIR

Controls for: shortcuts. Row completion answers nearly all of `test_ii` in every world of
`composition.py`, so `test_ii` does not show whether a model uses the single facts. Here, each cold
fact occurs in two training chains. A chain is shared if a further training chain has the same
bridge and the same last relation. The number of shared chains is 0, 1 or 2 (rungs c0, c1, c2).
Without a shared chain, no rule can infer the bridge from chains. The single fact states the bridge
on every rung.

How to read the results: a model that uses single facts has the same accuracy on `test_c0`,
`test_c1`, `test_c2` and `test_ii`. For a model that uses evidence from chains, the accuracy on
`test_c0` equals the accuracy on `test_oi`, and the accuracy on `test_c1` is higher.

Published: nothing; this task was designed for this project. The evidence is defined as in the
coverage principle (arXiv 2505.20278).

What to expect: results/ladder_rules has the accuracies of the rules. At `pocket` (means over 20
worlds), row completion is .95 on test_c2, .84 on test_c1 and .04 on test_c0. One run of `pocket`
ended with test_ii .83, test_c2 .62, test_c1 .38, test_c0 .21 and test_oi .23; see
results/reasoning_or_shortcut. It took 44 minutes on one core of an AMD EPYC that also did other
work, with an evaluation every 250 steps.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `bench`."""
    config = default_config("ladder")
    choose(scale, {"pocket": pocket, "desk": desk, "bench": bench})(config)
    return config


def pocket(config: ConfigDict) -> None:
    """Small scale for first experiments: 90 of the 100 bridges have a cold fact."""
    config.steps = 10_000
    config.optimizer.weight_decay = 0.3


def desk(config: ConfigDict) -> None:
    """Scale of the studies: world, model and schedule of `composition.py:desk`."""
    composition = Path(__file__).with_name("composition.py")
    usual = load_config(f"{composition}:desk")
    for group in ("steps", "batch_size", "log_every", "resume_every"):
        config[group] = usual[group]
    for group in ("model", "optimizer", "evaluation", "checkpoints"):
        config[group].update(usual[group])
    shared = set(usual.task) & set(config.task) - {"name"}
    config.task.update({key: usual.task[key] for key in shared})
    config.task.facts_per_rung = 70


def bench(config: ConfigDict) -> None:
    """Scale for accelerators, in which memorization comes before generalization (coverage .38)."""
    desk(config)
    config.steps = 200_000
    config.task.n_entities = 400
    config.task.n_relations = 40
    config.task.out_degree = 20
    config.task.ood_fraction = 0.05
    config.task.phi = 7.2
    config.task.facts_per_rung = 100
    config.model.n_layers = 4
    config.evaluation.every = 1_000
    config.checkpoints.every = 10_000
