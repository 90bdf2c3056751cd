"""Programs on CPUs do not use YNNPACK, whose fused products can read unwritten memory."""

import os
import subprocess
import sys

import pytest

from implicit_reasoning.runtime import xla_flags

OFF = "--xla_cpu_experimental_ynn_fusion_type="

# Attribution graphs of 180 prompts together, and of 20 at a time: the largest difference of an
# edge, and the largest edge. The memory allocator fills new memory with large numbers. With the
# fusions of jaxlib 0.10.2 (LIBRARY_FUSION_TYPE_DOT, _ELTWISE and _REDUCE), the difference is nan.
GRADIENTS = """
import jax, jax.numpy as jnp, numpy as np
from implicit_reasoning.dictionaries.architectures import CrossLayer
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.attribution import attribute
from implicit_reasoning.dictionaries.replacement import Replacement, mlp_sites
from implicit_reasoning.model import Spec, Transformer

spec = Spec(d_vocab=90, n_ctx=3, n_layers=2, d_model=128, n_heads=4, d_mlp=512)
model, random = Transformer(spec), np.random.default_rng(0)
params = jax.jit(model.init)(jax.random.key(0))
weights = lambda *shape: jnp.asarray(random.normal(size=shape) / 12, jnp.float32)
own = {
    "W_enc": weights(2, 128, 256), "b_enc": weights(512), "W_dec": weights(2, 256, 2, 128),
    "b_dec": weights(256),
}
dictionary = InferenceDictionary(CrossLayer(256, 256, 512, n_layers=2), "standard")
replacement = Replacement((dictionary,), mlp_sites(model))
tokens = random.integers(90, size=(180, 3)).astype(np.int32)
program = jax.jit(
    lambda params, own, tokens: attribute(
        model, params, replacement, [own], tokens, max_features=256
    ).adjacency
)
whole = program(params, own, tokens)
parts = [program(params, own, tokens[at : at + 20]) for at in range(0, 180, 20)]
print(float(abs(whole - jnp.concatenate(parts)).max()), float(abs(whole).max()))
"""


def run(code, **environment):
    """Run code in another process that has no XLA flags, and return its output."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_importing_the_package_sets_the_flag_and_keeps_other_flags():
    code = "import implicit_reasoning, os; print(os.environ['XLA_FLAGS'])"
    assert run(code) == OFF
    other = "--xla_cpu_parallel_codegen_split_count=1"
    assert run(code, XLA_FLAGS=other) == f"{other} {OFF}"
    own = f"{OFF}LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    assert run(code, XLA_FLAGS=own) == own


def test_an_unknown_version_of_jaxlib_gets_no_flag(monkeypatch):
    """XLA aborts the process if it does not know a flag."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(xla_flags, "version", lambda name: "0.12.0")
    xla_flags.switch_off_ynnpack()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.slow
def test_gradients_in_a_loop_do_not_read_unwritten_memory():
    difference, largest = map(float, run(GRADIENTS, MALLOC_PERTURB_="128").split())
    assert difference < 1e-4 < largest
