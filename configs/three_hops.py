"""Three hops, `(e1, r1, r2, r3) -> e4`: which of the eight patterns of `I` and `O` generalise?

    python -m implicit_reasoning train --config=configs/three_hops.py:desk --workdir=DIR

Controls for: what holds of two hops only. Splits train_iii, test_iii, and test_oii ... test_ooo.

Published (Ye et al. 2025; 1,000 entities, 100 relations, degree 10, 20% `O` facts - "can't be too
low" - and 120,000 training chains): of the patterns with `O` facts only test_oii, the `O` fact in
the first hop, rises; any `O` fact in hop 2 or 3 fails. To expect: the same, later than two hops.
Times: not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    config.task.hops = 3
    config.task.probes = 1_000  # there are ten splits
    choose(scale, {"pocket": pocket, "desk": desk, "paper": paper})(config)
    return config


def pocket(config: ConfigDict) -> None:
    """A small world, of which 15 chains a fact are trained on: coverage .30."""
    config.task.n_entities = 50
    config.task.n_relations = 10
    config.task.out_degree = 8
    config.task.ood_fraction = 0.1
    config.task.phi = 15.0
    config.model.n_layers = 3


def desk(config: ConfigDict) -> None:
    """Between the two."""
    config.task.n_entities = 150
    config.task.n_relations = 20
    config.task.out_degree = 8
    config.task.ood_fraction = 0.2
    config.task.phi = 15.0
    config.model.n_layers = 4


def paper(config: ConfigDict) -> None:
    """As published: 12 chains per fact of either role are 15 per `I` fact."""
    config.task.n_entities = 1_000
    config.task.n_relations = 100
    config.task.out_degree = 10
    config.task.ood_fraction = 0.2
    config.task.phi = 15.0
