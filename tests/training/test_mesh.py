"""The same run on eight devices: rows over `data`, heads and neurons over `model`, weights on both.

Devices are counted when JAX starts, so this runs in a process of its own.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

# Trains on every placement asked for; then what one device and eight saved goes on at the other.
PROGRAM = """
import json, shutil, sys, jax, numpy as np
from pathlib import Path
from tests.training.tiny import saved_state, tiny
from implicit_reasoning.runs import Checkpoints
from implicit_reasoning.training import sharding, train
from implicit_reasoning.training.setup import make_program

assert jax.device_count() == 8
folder, placements = sys.argv[1], json.loads(sys.argv[2])
events = dict(resume_every=50, evaluation__every=100, evaluation__per_doubling=0,
              checkpoints__every=100, checkpoints__per_doubling=0, writers__tensorboard=False)

def config(placement):
    data, model, fsdp = placement
    mesh = dict(mesh__data=data, mesh__model=model, mesh__fsdp=fsdp)
    return tiny(steps=100, log_every=1, **events, **mesh)

def losses(run):
    return [row["loss"] for row in run.metrics[1:]]

runs = {name: train(config(placement), f"{folder}/{name}")
        for name, placement in placements.items()}
said = {name: losses(run) for name, run in runs.items()}

for name, other in (("alone", "both"), ("both", "alone")):
    moved = Path(shutil.copytree(f"{folder}/{name}", f"{folder}/{name}_moved"))
    shutil.rmtree(f"{moved}/resume/100")
    saved = saved_state(moved)
    files = runs[name].files
    program = make_program(config(placements[other]), runs[name].dataset)
    like = {"state": program.like, "first_correct": np.zeros(1, np.int32)}
    like["first_correct"] = np.zeros_like(runs[name].first_correct["step"])
    reader = Checkpoints(files.resume)
    restored = reader.restore(50, like)
    reader.close()
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored["state"].params):
        whole = saved["['state']['params']" + jax.tree_util.keystr(path)]
        np.testing.assert_array_equal(np.asarray(leaf), whole)
    run = train(config(placements[other]), moved)
    assert losses(run)[:50] == said[name][:50]
    said[f"{name}, then {other}"] = losses(run)
    jax.tree.map(np.testing.assert_array_equal, run.params([0]), runs[name].params([0]))

run = runs["alone"]
mesh = sharding.make_mesh(config((4, 2, True)).mesh)
params = jax.tree.map(lambda x: x[0], run.params([100]))
spread = jax.device_put(params, sharding.tree_shardings(mesh, params, fsdp=True))
heads = spread["blocks"]["0"]["attn"]["W_Q"].addressable_shards
assert {shard.data.shape for shard in heads} == {(1, 2, 4)}  # of (2, 8, 4)
tokens = jax.device_put(run.dataset.tokens[:16], sharding.by_rows(mesh))
forward = jax.jit(lambda p, t: run.model.forward(p, t)[0])
difference = float(np.abs(forward(spread, tokens) - forward(params, run.dataset.tokens[:16])).max())
print(json.dumps({"losses": said, "difference": difference}))
"""

# (devices over data, over model, fully sharded)
ALONE, DATA, BOTH = (1, 1, False), (8, 1, False), (4, 2, True)
OTHERS = {"data": DATA, "fsdp": (8, 1, True), "tensor": (1, 2, False), "dt": (4, 2, False)}

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
    """What a program prints last, in a process that sees eight devices."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def losses_on(placements, folder):
    said = says(PROGRAM, str(folder), json.dumps(placements))
    assert said["difference"] < 1e-5
    return said["losses"]


def assert_they_agree(losses):
    for name, of_steps in losses.items():
        assert len(of_steps) == 100
        np.testing.assert_allclose(of_steps, losses["alone"], rtol=1e-5, err_msg=name)


def test_forward_and_training_agree_on_one_device_and_on_eight(tmp_path):
    assert_they_agree(losses_on({"alone": ALONE, "both": BOTH}, tmp_path))


@pytest.mark.slow
def test_every_placement_trains_the_same_run(tmp_path):
    assert_they_agree(losses_on({"alone": ALONE, "both": BOTH, **OTHERS}, tmp_path))


@pytest.mark.slow
def test_single_curves_part_and_their_mean_does_not(tmp_path):
    """Training amplifies rounding: what is compared after it is the mean over seeds."""
    said = says(GROKKING, str(tmp_path), json.dumps({"alone": ALONE, "data": DATA, "both": BOTH}))
    print(said)
    means = {name: np.mean(accuracies) for name, accuracies in said.items()}
    assert means["alone"] > 0.9  # it generalised, so there is something to agree on
    assert max(means.values()) - min(means.values()) <= 0.02
