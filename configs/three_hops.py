"""Three-hop composition `(e1, r1, r2, r3) -> e4`: which patterns of `I` and `O` facts generalize?

    python -m implicit_reasoning train --config=configs/three_hops.py:desk --workdir=DIR

Controls for: results that hold only for two hops. The splits are train_iii, test_iii, and test_oii
to test_ooo.

Published (Ye et al. 2025; 1,000 entities, 100 relations, out-degree 10, 20% `O` facts, 120,000
training chains): of the patterns with `O` facts, only test_oii rises, which has the `O` fact in the
first hop. Patterns with an `O` fact in hop 2 or 3 stay low.

What to expect: the same as published, but later than with two hops. Results at `pocket` (three
seeds, 9 minutes on one core, 6,000 steps): test_iii is .17 - .24, and test_oii is .11 - .13, equal
to its shortcut. The run is too short for generalization.
"""

from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import choose, load_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `paper`."""
    composition = Path(__file__).with_name("composition.py")
    config = load_config(f"{composition}:{scale}").unlock()
    # Entities, relations, out-degree, fraction of `O` facts. At `paper`, 15 training chains per `I`
    # fact equal 12 per fact of any role, as published. At `pocket`, the coverage is .30.
    sizes = {"pocket": (50, 10, 8, 0.1), "desk": (150, 20, 8, 0.2), "paper": (1_000, 100, 10, 0.2)}
    task = config.task
    task.n_entities, task.n_relations, task.out_degree, task.ood_fraction = choose(scale, sizes)
    task.hops, task.phi = 3, 15.0
    task.probes = 1_000  # there are ten splits
    config.model.n_layers = choose(scale, {"pocket": 3, "desk": 4, "paper": config.model.n_layers})
    return config
