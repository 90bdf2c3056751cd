"""The smallest run that has everything; the tests of the loop share it."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.runtime.writers import TIMINGS

TINY = {
    "steps": 60,
    "batch_size": 16,
    "log_every": 7,
    "resume_every": 20,
    "task.n_entities": 12,
    "task.n_relations": 4,
    "task.out_degree": 3,
    "task.ood_fraction": 0.2,
    "task.phi": 1.5,
    "task.holdout": 0.2,
    "model.d_model": 8,
    "model.n_heads": 2,
    "model.d_mlp": 16,
    "model.n_layers": 2,
    "optimizer.warmup_steps": 5,
    "evaluation.every": 10,
    "checkpoints.every": 25,
    "checkpoints.per_doubling": 0,
    "writers.progress": False,
}

# Changes to TINY: it also keeps checkpoints of the first steps, as the default configuration does.
EARLY = {"checkpoints.per_doubling": 1}

# Changes to TINY: a world small enough for the model to generalize. The rate ends at 0 and eps is
# larger than usual. Otherwise, after everything is learned, Adam divides rounding errors by their
# own size. The loss then jumps from 1e-8 to 0.2 and back, and comparisons depend on when it jumps.
GROKS = {
    "steps": 5000,
    "batch_size": 64,
    "log_every": 1000,
    "resume_every": 5000,
    "task.n_entities": 40,
    "task.n_relations": 6,
    "task.out_degree": 6,
    "task.ood_fraction": 0.05,
    "task.phi": 5.0,
    "task.holdout": 0.1,
    "model.d_model": 128,
    "model.n_heads": 4,
    "model.d_mlp": 512,
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 2.0,
    "optimizer.warmup_steps": 50,
    "optimizer.final_fraction": 0.0,
    "optimizer.eps": 1e-6,
    "evaluation.every": 5000,
    "evaluation.per_doubling": 0,
    "checkpoints.every": 5000,
    "checkpoints.per_doubling": 0,
    "writers.tensorboard": False,
}

# Changes to TINY: a run that does not end by itself and is signaled or killed. All such tests use
# this one, because another number of steps, or of steps between rows, needs another compilation.
LONG = {
    "steps": 400_000,
    "log_every": 100,
    "resume_every": 400_000,
    "evaluation.every": 400_000,
    "evaluation.per_doubling": 0,
    "checkpoints.every": 400_000,
    "checkpoints.per_doubling": 0,
}


def tiny(**overrides):
    """Return the tiny configuration; keyword arguments use `__` for the dot."""
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return apply_overrides(load_config("configs/composition.py:pocket"), {**TINY, **changes})


def early(**overrides):
    """Return it with checkpoints of the first steps, as the default configuration has them."""
    return tiny(**EARLY, **overrides)


def untimed(rows):
    """Return rows of metrics without the fields that differ between two equal runs."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def saved_state(workdir):
    """Return every leaf of the newest full state of a run, and the step at which it was saved."""
    resume = Layout(workdir).resume
    step = max(int(p.name) for p in resume.iterdir() if p.name.isdecimal())
    path = (resume / str(step) / "default").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        # Leaves are read as numpy arrays, because the devices that saved them may be absent.
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            dict(reader.metadata(path).item_metadata.tree),
        )
        tree = reader.restore(path, restore_args=arguments)
    return {"at": np.asarray(step)} | {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_run(a, b):
    """Check bit equality of full state, parameters, rows (without timings) and events."""
    one, other = saved_state(a), saved_state(b)
    assert one.keys() == other.keys() and len(one) > 60
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    a, b = Run(a), Run(b)
    assert untimed(a.metrics) == untimed(b.metrics)
    assert a.steps == b.steps
    jax.tree.map(np.testing.assert_array_equal, a.params(), b.params())
    jax.tree.map(np.testing.assert_array_equal, a.first_correct, b.first_correct)
    assert events(a) == events(b)
    leftovers = [p for r in (a, b) for p in r.files.workdir.rglob("*tmp*")]
    assert not leftovers


def events(run):
    """Return `{tag: [(step, value), ...]}` of TensorBoard's scalars, without timings."""
    reader = EventAccumulator(str(run.files.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
        if tag not in TIMINGS
    }
