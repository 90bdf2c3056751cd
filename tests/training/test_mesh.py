"""The same program on eight devices: rows over `data`, heads and neurons over `model`.

Devices are counted when JAX starts, so this runs in a process of its own.
"""

import json
import os
import subprocess
import sys

import numpy as np

PROGRAM = """
import json, sys, jax, numpy as np
import tests.conftest
from tests.training.tiny import tiny
from implicit_reasoning.training import sharding, train

assert jax.device_count() == 8
runs = {}
for name, mesh in {"alone": (1, 1, 1), "mesh": (1, 4, 2)}.items():
    trial, data, model = mesh
    changes = dict(mesh__trial=trial, mesh__data=data, mesh__model=model, log_every=1)
    runs[name] = train(tiny(**changes), sys.argv[1] + "/" + name, stop_at=30)
losses = {name: [row["loss"] for row in run.metrics[1:]] for name, run in runs.items()}

run = runs["alone"]
mesh = sharding.make_mesh(tiny(mesh__data=4, mesh__model=2).mesh)
params = jax.tree.map(lambda x: x[0], run.params([25]))
spread = jax.device_put(params, sharding.tree_shardings(mesh, params))
heads = spread["blocks"]["0"]["attn"]["W_Q"].addressable_shards
assert {shard.data.shape[0] for shard in heads} == {1}  # of two
tokens = jax.device_put(run.dataset.tokens[:16], sharding.by_rows(mesh))
forward = jax.jit(lambda p, t: run.model.forward(p, t)[0])
difference = float(np.abs(forward(spread, tokens) - forward(params, run.dataset.tokens[:16])).max())
print(json.dumps({"losses": losses, "difference": difference}))
"""


def test_forward_and_training_agree_on_one_device_and_on_eight(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["difference"] < 1e-5
    np.testing.assert_allclose(said["losses"]["mesh"], said["losses"]["alone"], rtol=1e-5)
