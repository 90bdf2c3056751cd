"""A configuration with sweeps, small enough for tests; the command also reads it as a file."""

from implicit_reasoning.sweeps import Real, grid
from tests.training.tiny import tiny


def get_config(arg=""):
    return tiny(resume_every=10)


def sweep_seeds():
    yield from grid({"seed": range(3)})


def sweep_points():
    yield from grid(
        {"optimizer.weight_decay": [0.1, 1.0], "task.phi": [1.2, 1.5], "seed": range(2)}
    )


def sweep_shapes():
    yield from grid({"model.d_model": [8, 16], "seed": range(2)})


def sweep_mixed():
    """Yield two populations, one trial that diverges, and one whose world is impossible.

    The populations differ in a field that is not part of the program, so little is compiled.
    """
    yield from grid({"checkpoints.every": [25, 30], "seed": [0, 1]})
    yield {"optimizer.learning_rate": 1e30, "seed": 4}
    yield {"task.phi": 99.0}


def sweep_few():
    """Yield two points, one with two seeds and one with one; as many trials as `sweep_seeds`."""
    for decay, phi, seed in ((0.1, 1.2, 0), (0.1, 1.2, 1), (1.0, 1.5, 0)):
        yield {"optimizer.weight_decay": decay, "task.phi": phi, "seed": seed}


def sweep_lost():
    """Yield one population of as many trials as `sweep_seeds`; the first diverges."""
    for seed, rate in enumerate((1e30, 1e-3, 1e-3)):
        yield {"seed": seed, "optimizer.learning_rate": rate}


def space_rates():
    return {"optimizer.learning_rate": Real(1e-4, 1e-2, log=True), "seed": _Seed()}


class _Seed:
    """Any object with these two methods is a distribution."""

    def sample(self, rng):
        return int(rng.integers(100))

    def suggest(self, trial, key):
        return trial.suggest_int(key, 0, 99)
