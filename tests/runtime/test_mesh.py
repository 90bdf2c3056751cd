"""The same run on eight devices: rows over `data`, heads and neurons over `model`, weights on both.

JAX counts devices when it starts, so this runs in its own process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from implicit_reasoning.runs import Checkpoints, Layout, Run
from implicit_reasoning.training import train
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.training.setup import make_program
from tests import shared
from tests.training.tiny import saved_state, tiny

# Trains on every given placement, until a step. The first one also resumes what one device saved.
PROGRAM = """
import json, sys, jax, numpy as np
from tests.runtime.test_mesh import config, continued
from implicit_reasoning.runtime import sharding
from implicit_reasoning.training import train
from implicit_reasoning.training.setup import mesh_axes

assert jax.device_count() == 8
folder, alone, placements, stop = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
runs = {
    name: train(config(place), f"{folder}/{name}", stop_at=stop)
    for name, place in placements.items()
}
said = {name: [row["loss"] for row in run.metrics[1:]] for name, run in runs.items()}
first = next(iter(placements.values()))
said["alone, then on eight"] = continued(alone, f"{folder}/moved", config(first))

run = next(iter(runs.values()))
mesh = sharding.make_mesh(config((4, 2, True)).mesh)
params = jax.tree.map(lambda x: x[0], run.params([stop]))
places = sharding.tree_shardings(mesh, params, mesh_axes(run.model), fsdp=True)
spread = jax.device_put(params, places)
heads = spread["blocks"]["0"]["attn"]["W_Q"].addressable_shards
assert {shard.data.shape for shard in heads} == {(1, 2, 4)}  # of (2, 8, 4)
tokens = jax.device_put(run.dataset.tokens[:16], sharding.row_sharded(mesh))
forward = jax.jit(lambda p, t: run.model.forward(p, t)[0])
difference = float(np.abs(forward(spread, tokens) - forward(params, run.dataset.tokens[:16])).max())
print(json.dumps({"losses": said, "difference": difference}))
"""

# (devices over data, over model, fully sharded)
ALONE, DATA, BOTH = (1, 1, False), (8, 1, False), (4, 2, True)
OTHERS = {"data": DATA, "fsdp": (8, 1, True), "tensor": (1, 2, False), "dt": (4, 2, False)}


def config(placement):
    """Return a configuration like that of `shared.finished(log_every=1)`, for these devices."""
    data, model, fsdp = placement
    return tiny(log_every=1, mesh__data=data, mesh__model=model, mesh__fsdp=fsdp)


def continued(run, to, config):
    """Return losses of a copy of a finished run that resumes from step 40 on other devices."""
    moved = Path(shutil.copytree(run, to))
    shutil.rmtree(moved / "resume" / "60")
    saved, before = saved_state(moved), Run(run)
    assert saved["at"] == 40
    program = make_program(TrainingSettings.from_config(config), before.dataset)
    like = {"state": program.like, "first_correct": before.first_correct["step"]}
    reader = Checkpoints(Layout(moved).resume)
    restored = reader.restore(40, like)
    reader.close()
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored["state"].params):
        whole = saved["['state']['params']" + jax.tree_util.keystr(path)]
        np.testing.assert_array_equal(np.asarray(leaf), whole)
    after = train(config, moved)
    jax.tree.map(np.testing.assert_array_equal, after.params([0]), before.params([0]))
    losses = [[row["loss"] for row in each.metrics[1:]] for each in (before, after)]
    assert losses[0][:40] == losses[1][:40]
    return losses[1]


GROKKING = """
import json, sys
from implicit_reasoning.config import apply_overrides
from implicit_reasoning.training import train
from tests.training.tiny import GROKS, tiny

said = {}
for name, (data, model, fsdp) in json.loads(sys.argv[2]).items():
    for seed in range(3):
        placement = dict(mesh__data=data, mesh__model=model, mesh__fsdp=fsdp)
        config = apply_overrides(tiny(**placement), GROKS | {"seed": seed})
        run = train(config, f"{sys.argv[1]}/{name}_{seed}")
        said.setdefault(name, []).append(run.metrics[-1]["accuracy/test_ii"])
print(json.dumps(said))
"""


def says(program, *arguments):
    """Run a program in a process with eight devices and return its last line, parsed."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def said_by(placements, folder, stop):
    alone = shared.finished(log_every=1)
    said = says(PROGRAM, str(folder), str(alone), json.dumps(placements), json.dumps(stop))
    assert said["difference"] < 1e-5
    moved = said["losses"].pop("alone, then on eight")
    np.testing.assert_allclose(moved, shared.losses(alone), rtol=1e-5)
    for name, losses in said["losses"].items():
        assert len(losses) == stop
        np.testing.assert_allclose(losses, shared.losses(alone)[:stop], rtol=1e-5, err_msg=name)


def test_forward_and_training_agree_on_one_device_and_on_eight(tmp_path):
    """Eight devices on two cores are slow, so they train less than half of the steps."""
    said_by({"both": BOTH}, tmp_path, 25)
    # One device here resumes what eight devices saved.
    saved, before = saved_state(tmp_path / "both"), Run(tmp_path / "both")
    run = train(config(ALONE), tmp_path / "both", stop_at=40)
    assert saved["at"] == run.starts[-1]["step"] == 25
    jax.tree.map(np.testing.assert_array_equal, run.params([0]), before.params([0]))
    expected = shared.losses(shared.finished(log_every=1))[:40]
    np.testing.assert_allclose(shared.losses(tmp_path / "both"), expected, rtol=1e-5)


@pytest.mark.slow
def test_every_placement_trains_the_same_run(tmp_path):
    said_by({"both": BOTH, "alone": ALONE, **OTHERS}, tmp_path, 60)
    one = continued(tmp_path / "both", tmp_path / "back", config(ALONE))
    np.testing.assert_allclose(one, shared.losses(shared.finished(log_every=1)), rtol=1e-5)


@pytest.mark.slow
def test_single_curves_part_and_their_mean_does_not(tmp_path):
    """Training amplifies rounding, so the mean over seeds is compared."""
    said = says(GROKKING, str(tmp_path), json.dumps({"alone": ALONE, "data": DATA, "both": BOTH}))
    print(said)
    means = {name: np.mean(accuracies) for name, accuracies in said.items()}
    assert means["alone"] > 0.9  # the model generalized, so the comparison is meaningful
    assert max(means.values()) - min(means.values()) <= 0.02
