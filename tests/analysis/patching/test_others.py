"""Back-patching repairs a late first hop, and parameter patching moves stored facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory
from implicit_reasoning.analysis.patching import back_patching, parameters
from implicit_reasoning.analysis.patching.back_patching import BackPatching
from implicit_reasoning.analysis.patching.parameters import ParameterPatching, exchange
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.storage import check_identity, identity_of
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from tests.analysis.by_hand import composer, dataset


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def made(data):
    return composer(data)


def too_late(data):
    """Return a composer that writes the bridge one block after the block that needs it."""
    model, params = composer(data)
    blocks = params["blocks"]
    idle = jax.tree.map(jnp.zeros_like, blocks["0"])
    spec = model.spec
    late = Transformer(Spec(**{**vars(spec), "n_layers": 3}))
    # Block 1 does hop 2, without the result of block 0. Block 2 does hop 1.
    order = {"0": idle, "1": blocks["1"], "2": blocks["0"]}
    return late, params | {"blocks": order}


@pytest.mark.slow
def test_a_late_bridge_is_repaired_at_its_place_only(data):
    model, params = too_late(data)
    runner = Runner(BackPatching(), model)
    result = measure(BackPatching(), InMemory(model, data, [params]), progress=False, runner=runner)
    assert runner.traces <= 2
    result = result.isel(step=0)
    wrong = result.wrong > 0.9
    assert wrong.all()
    shares = sum(result[name] for name in back_patching.OUTCOMES)
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    own, other = (result.repaired.sel(donor=donor) for donor in back_patching.DONORS)
    assert (own.sel(pos="r1", from_layer=3, layer=1) == 1).all()
    probable = result.probability.sel(donor="own", pos="r1", from_layer=3)
    assert (probable.sel(layer=1) > 0.99).all() and (probable.sel(layer=3) < 0.5).all()
    assert own.sel(pos="r2").max() < 0.3 and own.sel(pos="e1").max() < 0.3
    assert other.sel(pos="r1").mean() < 0.3
    for layer in range(4):  # if nothing is changed, nothing is repaired
        assert (own.sel(from_layer=layer, layer=layer) == 0).all()
        same = result.unchanged.sel(donor="own", from_layer=layer, layer=layer)
        assert (same == 1).all()
    # Another query's bridge leads to the answer of that query, which is damage and not a repair.
    cell = result.sel(donor=back_patching.DONORS[1], pos="r1", from_layer=3, layer=1)
    assert (cell.other > 0.2).all() and (cell.other > cell.repaired).all()
    for figure in BackPatching().figures(result.expand_dims("step")):
        figure.drawing.draw_without_rendering()


@pytest.mark.slow
def test_back_patching_with_layers_exchanged_fails(data, monkeypatch):
    real = back_patching._from_all_layers
    monkeypatch.setattr(
        back_patching, "_from_all_layers", lambda *args: jnp.swapaxes(real(*args), 1, 2)
    )
    model, params = too_late(data)
    result = measure(BackPatching(), InMemory(model, data, [params]), progress=False)
    repaired = result.isel(step=0).repaired.sel(donor="own", pos="r1", from_layer=3, layer=1)
    assert not (repaired == 1).all()


def test_parameters_move_what_they_hold(data, made):
    """Without the MLP of block 1 there is no second hop; that of the last checkpoint repairs it."""
    model, params = made
    idle = jax.tree.map(jnp.zeros_like, params["blocks"]["1"]["mlp"])
    blocks = params["blocks"] | {"1": params["blocks"]["1"] | {"mlp": idle}}
    subject = InMemory(model, data, [params | {"blocks": blocks}, params])
    runner = Runner(ParameterPatching(), model)
    result = measure(ParameterPatching(), subject, progress=False, runner=runner)
    assert runner.traces <= 2
    early = result.sel(step=0)
    assert (early.alone.sel(direction="earlier") == 1).all()
    assert early.alone.sel(direction="later").max() < 0.3
    later = early.correct.sel(direction="later")
    assert (later.sel(part="MLP", block=1) == 1).all()
    assert later.sel(part="attention").max() < 0.3
    earlier = early.correct.sel(direction="earlier")
    assert earlier.sel(part="MLP", block=1).max() < 0.3
    assert (earlier.sel(part="attention") == 1).all()
    probable = early.probability.sel(direction="later", block=1)
    assert (probable.sel(part="MLP") > 0.99).all() and (probable.sel(part="attention") < 0.5).all()
    assert (result.sel(step=1).correct == 1).all()  # the last checkpoint is compared with itself
    for figure in ParameterPatching().figures(result):
        figure.drawing.draw_without_rendering()


@pytest.mark.slow
def test_parameters_of_the_wrong_part_repair_nothing(data, made, monkeypatch):
    monkeypatch.setattr(
        parameters,
        "exchange",
        lambda own, other, part, block: exchange(own, other, 1 - part, block),
    )
    with pytest.raises(AssertionError):
        test_parameters_move_what_they_hold(data, made)


def test_what_is_exchanged_is_one_part_of_one_block():
    spec = Spec(d_vocab=5, n_ctx=3, n_layers=2, d_model=4, n_heads=1, d_mlp=4)
    own = jax.jit(Transformer(spec).init)(jax.random.key(0))
    other = jax.tree.map(lambda leaf: leaf + 1, own)
    new = exchange(own, other, jnp.int32(1), jnp.int32(0))
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), new, own)
    names = {jax.tree_util.keystr(path) for path, m in jax.tree.leaves_with_path(moved) if m}
    assert names == {
        f"['blocks']['0']['{group}']['{leaf}']"
        for group in ("ln2", "mlp")
        for leaf in new["blocks"]["0"][group]
    }


def test_results_held_against_another_checkpoint_do_not_mix(data, made):
    model, params = made
    two, three = (InMemory(model, data, [params] * n) for n in (2, 3))
    first = measure(ParameterPatching(), two, [0], progress=False)
    assert first.attrs["reference"] == 1
    check_identity(first, identity_of(ParameterPatching(), two))
    with pytest.raises(InputError, match=r"has reference 1, expected 2; rerun with --again"):
        check_identity(first, identity_of(ParameterPatching(), three))
