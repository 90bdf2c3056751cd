"""The compilation cache is found by the next process, and harmless where it cannot be used."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import jax
import pytest

from implicit_reasoning.runtime import compilation

# A process with a cache. It prints why it has none, the hits and misses of one program, and its
# result.
CODE = """
import sys
from implicit_reasoning.runtime import compilation
why_not = compilation.use_cache(sys.argv[1] == "yes")
import jax, jax.numpy as jnp
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.rpartition("/")[2]))
result = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.linspace(0, 1, 64).reshape(8, 8))
print(repr(why_not), seen.count("cache_hits"), seen.count("cache_misses"))
print(jax.device_get(result).tobytes().hex())
print(jax.config.jax_compilation_cache_dir)
"""
OWN = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE", "JAX_ENABLE_COMPILATION_CACHE")


def environment(cache, **more):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(OWN)}
    return {**inherited, "XDG_CACHE_HOME": str(cache), **more}


def process(cache, wanted="yes", **more):
    command = [sys.executable, "-c", CODE, wanted]
    env = environment(cache, **more)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, result, folder = done.stdout.splitlines()
    why_not, hits, misses = first.rsplit(" ", 2)
    return why_not.strip("'\""), int(hits), int(misses), result, folder, done.stderr


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return cache, process(cache)


def test_the_next_process_finds_what_was_compiled_and_computes_the_same(filled):
    cache, (why_not, hits, misses, result, folder, _) = filled
    assert (why_not, hits) == ("", 0) and misses > 0
    assert Path(folder).is_relative_to(cache) and f"jax-{jax.__version__}-" in folder
    again = process(cache)
    assert (again[1], again[2]) == (misses, 0) and again[3] == result
    without = process(cache, "no")
    assert without[:3] == ("it is switched off", 0, 0) and without[3] == result


@pytest.mark.slow
def test_two_processes_at_a_time(tmp_path):
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(process, [tmp_path] * 2))
    assert found[0][3] == found[1][3] and all(each[0] == "" for each in found)
    assert not any("warning" in each[5].lower() for each in found)


@pytest.mark.slow
def test_what_a_crash_left_half_written_is_compiled_again(filled, tmp_path):
    cache, (_, _, misses, result, folder, _) = filled
    for entry in Path(folder).glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:10])
        entry.with_name(entry.name.replace("-cache", "-atime")).unlink()
    again = process(cache)
    assert again[2] == misses and again[3] == result and not again[5]
    assert process(cache)[1] == misses


def test_a_home_that_cannot_be_used_does_not_break_a_run(tmp_path, filled):
    (tmp_path / "file").touch()
    why_not, hits, misses, result, folder, said = process(tmp_path / "file")
    assert "cannot be used" in why_not and folder == "None"
    assert result == filled[1][3] and (hits, misses) == (0, 0) and not said


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Use an empty cache directory without the user's settings, and restore JAX's settings
    afterwards.
    """
    names = ["jax_compilation_cache_dir", "jax_enable_compilation_cache", *compilation._SETTINGS]
    before = {name: compilation.setting(name) for name in names}
    for name in list(os.environ):
        if name.startswith(OWN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # monkeypatch restores it
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_choice_of_the_user_goes_first(settings, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert "is empty" in compilation.use_cache()
    assert compilation.setting("jax_compilation_cache_dir") is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", str(settings / "own"))
    assert compilation.use_cache() == ""
    assert compilation.setting("jax_compilation_cache_dir") == str(settings / "own")
    jax.config.update("jax_compilation_cache_dir", None)
    assert compilation.use_cache() == ""
    assert Path(compilation.setting("jax_compilation_cache_dir")).is_relative_to(settings)
    assert compilation.setting("jax_compilation_cache_max_size") == compilation.MAX_BYTES
    assert compilation.setting("jax_persistent_cache_min_compile_time_secs") == 7.0
    assert "is switched off" in compilation.use_cache(False)


def test_a_folder_that_cannot_be_locked_is_not_used(settings, monkeypatch):
    def acquire(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert "support flock" in compilation.use_cache()
    assert compilation.setting("jax_compilation_cache_dir") is None
    assert compilation.describe().startswith("none: its folder cannot be used")


def test_folders_of_versions_long_unused_are_removed(settings):
    folder = compilation.cache_folder()
    old, recent = folder.with_name("jax-0.1-x"), folder.with_name("jax-0.2-x")
    for each, age in ((old, 100), (recent, 10)):
        each.mkdir(parents=True)
        (each / "last_used").touch()
        then = time.time() - age * 24 * 3600
        os.utime(each / "last_used", (then, then))
    foreign = folder.with_name("other")
    foreign.mkdir()
    assert compilation.cache_fault() == ""
    assert sorted(folder.parent.iterdir()) == sorted([folder, recent, foreign])


def test_processors_that_differ_have_other_folders(monkeypatch):
    def of(text):
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        return compilation.cache_folder().name

    intel = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) @ 2.10GHz\nflags\t\t: fpu avx2\n"
    names = [of(intel), of(intel.replace("Intel", "AMD")), of(intel.replace("avx2", "avx512f"))]
    assert len(set(names)) == 3 and "Intel-R-Xeon-R-2-10GHz" in names[0]
    assert names[0] == of(intel)


def test_the_doctor_sees_whether_it_works():
    """This test uses the same cache as all tests."""
    said = compilation.describe()
    assert compilation.setting("jax_compilation_cache_dir") in said and said.endswith("it works")
