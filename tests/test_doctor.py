"""The doctor names what it finds, and only advises what would help."""

import jax
import pytest

from implicit_reasoning import doctor
from implicit_reasoning.machine import matmul_peak


def test_findings(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "matmul_peak", lambda dtype: {"float32": 2e12}.get(dtype, 4e12))
    found = doctor.examine(str(tmp_path / "not" / "there" / "yet"))
    assert found["matrix products"] == "2,000 GFLOP/s in float32, 4,000 GFLOP/s in bfloat16"
    assert str(tmp_path) in found["free disk"]
    assert jax.__version__ in found["packages"]


@pytest.mark.parametrize("folder", [None, "cache"])
def test_a_cache_is_advised_where_there_is_none(folder, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", folder and str(tmp_path / folder))
    try:
        advised = any("JAX_COMPILATION_CACHE_DIR" in advice for advice in doctor.remedies())
        assert advised == (folder is None)
        assert (doctor.examine_cache() == "none") == (folder is None)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_an_idle_gpu_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    assert any("cuda" in advice for advice in doctor.remedies())


def test_the_peak_is_that_of_products():
    """Within a factor that other work on the machine may cost: a product of one size up."""
    small, large = matmul_peak(n=256, repeats=3), matmul_peak(n=512, repeats=3)
    assert 0.05 < small / large < 20
    assert large > 1e8  # no processor that runs this is slower
