"""A run directory has exact and complete checkpoints, and a `Run` reads everything in it."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.config import to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.runs import CachedStore, Checkpoints, Layout, Run, Store
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny


class State(NamedTuple):
    """Like the state of training: nested, with numbers and flags beside the arrays."""

    params: dict
    step: jax.Array
    finite: jax.Array


def state(step):
    awkward = np.array([step / 3, -0.0, np.inf, np.nan, 1e-45, 3e38], np.float32)
    return State(
        params={
            "embed": {"W_E": jnp.asarray(awkward)},
            "blocks": {"0": {"half": jnp.arange(5, dtype=jnp.bfloat16)}},
        },
        step=jnp.int32(step),
        finite=jnp.bool_(step % 2),
    )


def assert_same(a, b):
    """Check equality bit for bit: nan equals nan, and -0 differs from 0."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def checkpoints(folder):
    opened = Checkpoints(folder)
    yield opened
    opened.close()


def test_what_is_saved_comes_back_bit_for_bit(checkpoints):
    for step in (0, 7):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps == (0, 7)
    for step in (0, 7):
        # `like` may be shapes, so that no arrays have to be made.
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(step)
        )
        restored = checkpoints.restore(step, shapes)
        assert_same(restored, state(step))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


def test_a_step_that_is_there_is_left_as_it_is(checkpoints):
    """A resumed run revisits saved steps; saving them again could lose them in a crash."""
    checkpoints.save(3, state(3))
    checkpoints.wait()
    checkpoints.save(3, state(4))
    checkpoints.wait()
    assert_same(checkpoints.restore(3, state(0)), state(3))


def test_a_step_before_the_last_is_saved_too(checkpoints):
    """Orbax alone would skip it silently."""
    for step in (10, 5):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps == (5, 10)
    assert_same(checkpoints.restore(5, state(0)), state(5))


def test_only_the_last_are_kept_where_that_is_asked_for(folder):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 5, 9):
        checkpoints.save(step, state(step))
    checkpoints.close()
    assert sorted(int(path.name) for path in folder.iterdir()) == [5, 9]
    again = Checkpoints(folder, keep=2)
    assert again.steps == (5, 9)
    again.save(12, state(12))
    again.close()
    assert sorted(int(path.name) for path in folder.iterdir()) == [9, 12]


def half_written(folder):
    """Write the files of a process that was killed while saving (seen with Orbax 0.11 and 0.12)."""
    left = [folder / "20.orbax-checkpoint-tmp", folder / "30.orbax-checkpoint-tmp-1700000000"]
    for path in left:
        (path / "default.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
        (path / "default.orbax-checkpoint-tmp" / "_METADATA").write_text('{"tree_')
    return left


def test_a_writer_removes_half_written_checkpoints(folder):
    folder.mkdir()
    left = half_written(folder)
    writer = Checkpoints(folder)
    assert writer.steps == ()
    for step in (20, 30):  # the same steps are saved again
        writer.save(step, state(step))
    writer.close()
    assert not any(path.exists() for path in left)
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a run directory without training; parameters have the value `step` everywhere."""
    files = Layout(tmp_path_factory.mktemp("run"))
    config = tiny()
    build(config.task).save(files.world)
    write_json(files.config, to_json(config))
    checkpoints = Checkpoints(files.checkpoints)
    for step in (0, 1, 4, 25):
        checkpoints.save(step, constant(Run(files.workdir), step))
    checkpoints.close()
    return files.workdir


def constant(run, value):
    shapes = jax.eval_shape(run.model.init, jax.random.key(0))
    return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), shapes)


@pytest.fixture
def run(workdir):
    return Run(workdir)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        InputError, match=r"is not a run directory, because it has no config.json; give"
    ):
        Run(tmp_path)
    with pytest.raises(InputError, match="nowhere is not a run directory"):
        Run(tmp_path / "nowhere")


def test_a_run_knows_its_configuration_dataset_and_model(run):
    assert run.config == tiny()
    assert run.dataset.fingerprint() == build(tiny().task).fingerprint()
    spec = run.model.spec
    assert (spec.d_vocab, spec.n_ctx, spec.d_model) == (16, 3, 8)
    assert repr(run) == f"Run({str(run.files.workdir)!r}, 4 checkpoints up to step 25)"


def test_analysis_is_in_float32_whatever_training_was_in(workdir, tmp_path):
    files = Layout(tmp_path)
    files.world.symlink_to(workdir / "world.npz")
    config = tiny(model__dtype="bfloat16", model__precision="default")
    write_json(files.config, to_json(config))
    spec = Run(tmp_path).model.spec
    assert (spec.dtype, spec.precision) == ("float32", "highest")


def test_parameters_are_stacked_in_the_order_asked_for(run):
    assert run.steps == (0, 1, 4, 25)
    for asked in (None, [25, 1], (4,)):
        steps = run.steps if asked is None else asked
        params = run.params(asked)
        for leaf, one in zip(
            jax.tree.leaves(params), jax.tree.leaves(constant(run, 0)), strict=True
        ):
            assert leaf.shape == (len(steps), *one.shape) and leaf.dtype == one.dtype
            np.testing.assert_array_equal(leaf.reshape(len(steps), -1)[:, 0], steps)
    assert set(params["blocks"]) == {"0", "1"}


def test_steps_without_a_checkpoint_are_named(run):
    with pytest.raises(
        InputError, match=r"no checkpoint of the steps \[2, 3\]; .* steps \(0, 1, 4"
    ):
        run.params([1, 2, 3])
    with pytest.raises(InputError, match="no checkpoint of the steps"):
        run.params([])


def test_half_written_checkpoints_are_no_steps(workdir, run):
    left = half_written(run.files.checkpoints)
    try:
        assert run.steps == (0, 1, 4, 25)
        assert run.params([25])["embed"]["W_E"].max() == 25
    finally:
        for path in left:
            for each in sorted(path.rglob("*"), reverse=True):
                each.unlink() if each.is_file() else each.rmdir()
            path.rmdir()


def test_an_open_run_sees_the_checkpoints_that_training_adds(run):
    assert run.params([25])["ln_final"]["w"].max() == 25
    writer = Checkpoints(run.files.checkpoints)
    writer.save(50, constant(run, 50))
    writer.close()
    try:
        assert run.steps == (0, 1, 4, 25, 50)
        assert run.params([50])["ln_final"]["w"].max() == 50
    finally:
        writer = Checkpoints(run.files.checkpoints, keep=4)  # other tests must not see it
        writer.close()


def test_a_run_reads_from_any_store(workdir):
    """A trial of a population, a row of a stacked checkpoint, is read in this way."""

    class Row:
        steps = (7, 9)

        def params(self, step):
            return {"embed": {"W_E": np.full((2, 3), step, np.float32)}}

    assert isinstance(Row(), Store)
    run = Run(workdir, Row())
    assert run.steps == (7, 9)
    assert run.params()["embed"]["W_E"][:, 0, 0].tolist() == [7, 9]


def test_a_run_that_has_not_begun_to_save_has_no_steps(workdir, tmp_path):
    files = Layout(tmp_path)
    files.world.symlink_to(workdir / "world.npz")
    files.config.symlink_to(workdir / "config.json")
    run = Run(tmp_path)
    assert run.steps == () and run.metrics == []
    with pytest.raises(InputError, match=r"no checkpoint .* choose one or more of the steps \(\)"):
        run.params()


def result():
    """Return labels, types that netCDF 3 would narrow, and attributes that netCDF does not have."""
    return xr.Dataset(
        {
            "big": (("split", "step"), np.arange(6).reshape(2, 3) * 2**40, {"units": "rows"}),
            "right": ("step", np.array([True, False, True])),
            "effect": ("step", np.array([0.1, np.nan, -0.0], np.float32), {"dims": [1, None]}),
            "unsigned": ("step", np.array([0, 1, 2**32 - 1], np.uint32)),
            "none_of_it": ("nothing", np.zeros(0)),
            "scalar": ((), np.float64(1 / 3)),
        },
        coords={
            "split": ("split", np.array(["train_ii", "test_oo"]), {"what": "of the dataset"}),
            "step": np.array([0, 2**33, 2**34]),
        },
        attrs={"control": None, "nested": {"k": [1, {"a": None}]}, "seed": 2**60, "exact": 0.1},
    )


def test_results_come_back_as_they_were(run):
    kept, given = result(), result()
    path = run.save_result("lens", given)
    assert path == run.files.analysis / "lens.nc"
    assert given.identical(kept)  # saving does not change the argument
    found = run.result("lens")
    xr.testing.assert_identical(found, kept)
    for name, variable in kept.variables.items():
        assert found[name].dtype == variable.dtype, name


def test_a_result_is_replaced_whole(run):
    run.save_result("again", result())
    other = xr.Dataset({"x": ("n", np.arange(3))})
    run.save_result("again", other)
    xr.testing.assert_identical(run.result("again"), other)
    assert [p.name for p in run.files.analysis.iterdir() if "again" in p.name] == ["again.nc"]
    # If a result cannot be written, the old one is unchanged.
    with pytest.raises(TypeError):
        run.save_result("again", other.assign_attrs(bad=object()))
    xr.testing.assert_identical(run.result("again"), other)


def test_a_result_that_is_not_there_is_named(run):
    with pytest.raises(InputError, match=r"there is no result 'probes' in .*analysis"):
        run.result("probes")


@pytest.mark.parametrize("cut", ["", '{"step": 20, "lo', '{"step": 20, "loss": 1.0}'])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": 2.5}, {"step": 10, "loss": float("inf")}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)
    assert read_metrics(path) == rows


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, oops\n{"step": 2}\n')
    with pytest.raises(
        InputError, match=r"metrics.jsonl, line 2, is not JSON: '{\"step\": 1, oops'"
    ):
        read_metrics(path)


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_first_correct_is_read_whole(run):
    np.savez(run.files.first_correct, row=np.arange(3), step=np.array([0, -1, 50]))
    found = run.first_correct
    assert found.keys() == {"row", "step"} and found["step"].tolist() == [0, -1, 50]


def test_what_was_read_is_kept_as_far_as_memory_allows():
    class Counted:
        steps = (0, 1, 2)

        def __init__(self):
            self.read = []

        def params(self, step):
            self.read.append(step)
            return {"w": np.full(10, step, np.float32)}

    store = Counted()
    held = CachedStore(store, limit=80)  # space for two
    assert isinstance(held, Store) and held.steps == store.steps
    for _ in range(2):
        assert [held.params(step)["w"][0] for step in held.steps] == [0, 1, 2]
    assert store.read == [0, 1, 2, 2]
