"""Three hops, `(e1, r1, r2, r3) -> e4`: which of the eight patterns of `I` and `O` generalise?

    python -m implicit_reasoning train --config=configs/three_hops.py:desk --workdir=DIR

Controls for: what holds of two hops only. Splits train_iii, test_iii, and test_oii ... test_ooo.

Published (Ye et al. 2025; 1,000 entities, 100 relations, degree 10, 20% `O` facts - "can't be too
low" - and 120,000 training chains): of the patterns with `O` facts only test_oii, the `O` fact in
the first hop, rises; any `O` fact in hop 2 or 3 fails. To expect: the same, later than two hops. At
`pocket` (three seeds, 9 minutes on one core, 6,000 steps): test_iii .17 - .24, test_oii .11 - .13,
as its shortcut; not reached.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """The experiment at a scale: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    # Entities, relations, out-degree, share of `O` facts. On `paper`, 12 chains per fact of either
    # role are 15 per `I` fact, as published; on `pocket` that is a coverage of .30.
    sizes = {"pocket": (50, 10, 8, 0.1), "desk": (150, 20, 8, 0.2), "paper": (1_000, 100, 10, 0.2)}
    task = config.task
    task.n_entities, task.n_relations, task.out_degree, task.ood_fraction = choose(scale, sizes)
    task.hops, task.phi = 3, 15.0
    task.probes = 1_000  # there are ten splits
    config.model.n_layers = choose(scale, {"pocket": 3, "desk": 4, "paper": config.model.n_layers})
    return config
