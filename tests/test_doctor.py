"""The doctor names what it finds, and advises only changes that would help."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning import doctor
from implicit_reasoning.runtime import compilation, machine


def test_findings(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "matmul_peak", lambda dtype: {"float32": 2e12}.get(dtype, 4e12))
    found = doctor.examine(str(tmp_path / "not" / "there" / "yet"))
    assert found["matrix products"] == "2,000 GFLOP/s in float32, 4,000 GFLOP/s in bfloat16"
    assert str(tmp_path) in found["free disk"]
    assert jax.__version__ in found["packages"]


@pytest.mark.parametrize("folder", [None, "cache"])
def test_a_cache_is_advised_where_there_is_none(folder, tmp_path):
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", folder and str(tmp_path / folder))
    try:
        advised = any("JAX_COMPILATION_CACHE_DIR" in advice for advice in doctor.remedies())
        assert advised == (folder is None)
        assert compilation.describe().startswith("none") == (folder is None)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_an_idle_gpu_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    assert any("cuda" in advice for advice in doctor.remedies())


def test_the_peak_counts_every_product_once(monkeypatch):
    """The machine takes 5 ms per product, and the first measurement is disturbed."""
    disturbed = iter([3.0])
    monkeypatch.setattr(
        machine, "_time_products", lambda one, two, count: 0.005 * count * next(disturbed, 1.0)
    )
    assert machine.matmul_peak(n=100) == pytest.approx(2 * 100**3 / 0.005)


def test_as_many_products_are_made_as_are_counted():
    one, two = jnp.eye(4), 2 * jnp.eye(4)
    np.testing.assert_allclose(machine._products(one, two, 3), jnp.eye(4))  # (2 / sqrt(4)) ** 3
    np.testing.assert_allclose(machine._products(one, 4 * two, 3), 64 * jnp.eye(4))
