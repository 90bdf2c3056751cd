"""Patching a corrupted token moves the answer exactly where hand-written models carry the token."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, queries
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.patching import activation_patching, grids, query_pairs
from implicit_reasoning.analysis.patching.activation_patching import ActivationPatching
from implicit_reasoning.analysis.patching.query_pairs import replacements, symmetric_replacements
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.model import Edit, Spec, Transformer, mask
from implicit_reasoning.model.cones import cache_sites
from tests.analysis.by_hand import composer, dataset, memoriser
from tests.model.exchange.models import filled

TRUE = {
    Claim("carried", "e1", 0, "e1"),
    Claim("carried", "r1", 0, "r1"),
    Claim("carried", "r1", 1, "r1"),
    *(Claim("carried", "r2", layer, "r2") for layer in range(3)),
}


@pytest.fixture(scope="module")
def data():
    return dataset()


def result_of(make, data):
    """Return the measurement of a hand-written model and of random weights of the same shape."""
    model, params = make(data)
    noise = filled(model, seed=1)
    subject, runner = InMemory(model, data, [params, noise]), Runner(ActivationPatching(), model)
    found = measure(ActivationPatching(), subject, progress=False, runner=runner)
    assert runner.traces <= 2  # for all cells and checkpoints
    return found


@pytest.fixture(scope="module")
def result(data):
    return result_of(composer, data)


@pytest.fixture(scope="module")
def composed(result):
    return result.isel(step=0)


@pytest.mark.parametrize("make", [composer, pytest.param(memoriser, marks=pytest.mark.slow)])
def test_tokens_are_carried_to_where_they_are_read(result, data, make):
    found = result if make is composer else result_of(make, data)
    assert ActivationPatching().claims(found.isel(step=0)) == TRUE
    assert ActivationPatching().claims(found.isel(step=1)) == set()  # random weights


def test_shares_in_a_composer(composed):
    assert (composed.correct == 1).all()
    shares = composed.fraction.sel(kind="counterfactual")
    np.testing.assert_allclose(shares.sum("outcome"), 1, atol=1e-6)
    noising, denoising = (shares.sel(direction=name) for name in ("noising", "denoising"))
    moved = noising.sel(outcome="counterfactual")
    # The first hop is complete when the state at r1 contains the bridge. From there both e1 and r1
    # move on.
    for token in ("e1", "r1"):
        assert (moved.sel(token=token, layer=1, pos="r1") == 1).all()
        assert (moved.sel(token=token, layer=2, pos="r2") == 1).all()
        assert (moved.sel(token=token, layer=2, pos="r1") == 0).all()
    assert (moved.sel(token="e1", layer=1, pos="e1") == 0).all()
    assert (moved.sel(token="r2", pos=["e1", "r1"]) == 0).all()
    # Denoising restores the answer at the same places.
    restored = denoising.sel(outcome="clean answer")
    np.testing.assert_array_equal(restored.transpose(*moved.dims), moved)
    assert composed.null_fraction.sel(direction="noising", kind="counterfactual").max() < 0.4


def test_parts_in_a_composer(composed):
    moved = composed.part_fraction.sel(outcome="counterfactual", direction="noising")
    # The MLP of block 0 writes the bridge at r1, and attention of block 1 moves it to r2. The MLP
    # of block 0 reads from the residual what attention moved to r1, so attention also carries it.
    for block, part, pos in ((0, "MLP", "r1"), (1, "attention", "r2"), (1, "head 0", "r2")):
        assert (moved.sel(token="r1", block=block, part=part, pos=pos) == 1).all()
    assert (moved.sel(token="e1", block=0, part="attention", pos="r1") == 1).all()
    assert (moved.sel(token="r1", block=0, part="attention") == 0).all()
    assert (moved.sel(token="r2", block=0) == 0).all()
    graded = composed.sel(direction="noising", block=0, pos="r1")
    changed, idle = (graded.sel(token="r1", part=part) for part in ("MLP", "attention"))
    assert (changed.part_probability < 0.01).all() and (changed.part_divergence > 1).all()
    assert (idle.part_probability > 0.99).all() and (idle.part_divergence < 1e-6).all()
    assert (changed.part_logit_difference < -5).all() and (idle.part_logit_difference > 5).all()
    null = composed.part_null_fraction.sel(direction="noising")
    assert null.dims == moved.dims and null.max() < 0.4


def test_graded_measures(composed):
    clean = composed.sel(kind="counterfactual", direction="noising", layer=1)
    assert (clean.divergence.sel(token="r2", pos="r1") < 1e-6).all()
    assert (clean.divergence.sel(token="r1", pos="r1") > 1).all()
    assert (clean.probability.sel(token="r2", pos="r1") > 0.99).all()
    assert (clean.logit_difference.sel(token="r2", pos="r1") > 5).all()
    assert (clean.logit_difference.sel(token="r1", pos="r1") < -5).all()


SPEC = Spec(d_vocab=11, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=16, init_std=0.5)
RANDOM = Transformer(SPEC)  # several heads
TOKENS = np.array([[1, 2, 3], [4, 5, 6]])
SITES = cache_sites(RANDOM, inside=True)
PARTS = (("hook_attn_out",), ("hook_mlp_out",), ("attn.hook_z", 0), ("attn.hook_z", 1))


@jax.jit
def two_runs(params, donor_tokens):
    """Return the sites of the clean run and of a donor run."""
    return [RANDOM.forward(params, tokens, sites=SITES)[1] for tokens in (TOKENS, donor_tokens)]


@jax.jit
def patched_grids(params, base, donor):
    return [patch(RANDOM, params, base, donor) for patch in (grids.patch_states, grids.patch_parts)]


@jax.jit
def patched_where_one_differs(params, base, donor, only):
    patches = (grids.patch_states, grids.patch_parts)
    return [patch(RANDOM, params, base, donor, only=only) for patch in patches]


@jax.jit
def logits_with(params, edits):
    """Return logits of `forward` with an edit at every site; the masks select the patched cell."""
    return RANDOM.forward(params, TOKENS, edits=edits)[0][:, -1]


@pytest.fixture(scope="module")
def random_params():
    return filled(RANDOM)


def test_the_grids_equal_forward_with_edits(random_params):
    """Patched logits agree at every cell."""
    base, donor = jax.device_get(two_runs(random_params, TOKENS[:, ::-1]))
    names = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")
    parts = [[f"blocks.{block}.{name}" for name, *_ in PARTS] for block in range(2)]
    nowhere = {site: np.zeros(donor[site].shape, bool) for site in {*names, *parts[0], *parts[1]}}

    def wanted(site, pos, head=slice(None)):
        where = nowhere[site].copy()
        where[:, pos, head] = True
        masks = nowhere | {site: where}
        return logits_with(
            random_params, {of: Edit(mask, (cells, donor[of])) for of, cells in masks.items()}
        )

    by_state = [[wanted(name, pos) for pos in range(3)] for name in names]
    by_part = [
        [
            [wanted(site, pos, *head) for pos in range(3)]
            for site, (_, *head) in zip(sites, PARTS, strict=True)
        ]
        for sites in parts
    ]
    found, found_parts = patched_grids(random_params, base, donor)
    np.testing.assert_allclose(found, np.array(by_state), atol=2e-5)
    np.testing.assert_allclose(found_parts, np.array(by_part), atol=2e-5)
    assert grids.part_names(RANDOM) == ("attention", "MLP", "head 0", "head 1")


@pytest.mark.parametrize("only", [0, 1, 2])
def test_where_one_token_differs_nothing_else_need_be_computed(random_params, only):
    """Nothing changes in the cells that are left out."""
    other = TOKENS.copy()
    other[:, only] += 1
    base, donor = two_runs(random_params, other)
    everything = patched_grids(random_params, base, donor)
    few = patched_where_one_differs(random_params, base, donor, np.int32(only))  # traced
    for whole, part in zip(everything, few, strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-5)
        assert np.ptp(whole, axis=-3).max() > 0.1  # across positions


@pytest.mark.parametrize("order", ["e r r", "r r e"])
def test_a_replaced_token_leads_to_the_answer_that_is_said(order):
    data = dataset(order=order)
    rows = np.concatenate([data.probes(name) for name in ("train_ii", "test_ii", "test_oi")])
    asked = queries.queries_of_rows(data, rows)
    token, answer = replacements(data, asked, np.random.default_rng(0))
    tail, known = data.world.tail, answer >= 0
    assert known.mean(1).min() > 0.5
    assert (answer[known] != np.broadcast_to(asked.answer, answer.shape)[known]).all()
    for part in range(3):
        e1, r1, r2 = np.where(np.arange(3)[:, None] == part, token[part], asked.parts.T)
        if part:
            r1, r2 = (r - data.world.n_entities * (r >= data.world.n_entities) for r in (r1, r2))
        here = known[part]
        np.testing.assert_array_equal(tail[tail[e1, r1], r2][here], answer[part][here])
    np.testing.assert_array_equal(queries.prompt_tokens(data, asked.parts), data.tokens[rows, :3])


def test_trained_questions_are_preferred():
    data = dataset()
    asked = queries.queries_of_rows(data, data.probes("train_ii"))
    table = queries.all_queries(data)
    found = query_pairs._exchanged(
        asked, table, table.trained, np.array([1, 2]), np.random.default_rng(0)
    )
    token, _ = replacements(data, asked, np.random.default_rng(0))
    there = found >= 0
    assert there.any()
    trained = {tuple(map(int, parts)) for parts in table.parts[table.trained]}
    new = np.column_stack([token[0], asked.parts[:, 1:]])[there]
    assert all(tuple(map(int, parts)) in trained for parts in new)


def test_a_symmetric_replacement_is_another_token_of_the_kind(data):
    asked = queries.queries_of_rows(data, data.probes("test_ii"))
    new, _ = symmetric_replacements(data, asked, np.random.default_rng(0))
    size, world = data.world.n_entities, data.world
    old = asked.parts.T + np.array([[0], [size], [size]])
    assert (new != old).all()
    assert (new[0] < size).all() and (new[1:] >= size).all()
    assert (new < size + world.n_relations).all()


@pytest.mark.parametrize("order", ["e r r", "r r e"])
def test_a_symmetric_token_has_the_answer_that_the_world_gives(order):
    data = dataset(order=order)
    n_entities, tail = data.world.n_entities, data.world.tail
    examples = ActivationPatching().examples(composer(data)[0], data)
    tokens, corrupt, answer = (examples.inputs[n] for n in ("tokens", "corrupt", "answer"))
    e1, r1, r2 = (data.positions.index(name) for name in ("e1", "r1", "r2"))

    def by_hand(prompt):
        bridge = tail[prompt[e1], prompt[r1] - n_entities]
        return tail[bridge, prompt[r2] - n_entities] if bridge >= 0 else -1

    symmetric = activation_patching.CORRUPTIONS.index("symmetric")
    known = 0
    for row, prompt in enumerate(tokens):
        clean = by_hand(prompt)
        assert clean == examples.inputs["clean"][row]
        for place in range(3):
            changed = prompt.copy()
            changed[place] = corrupt[row, symmetric, place]
            wanted = by_hand(changed)
            assert answer[row, symmetric, place] == (-1 if wanted == clean else wanted)
            known += answer[row, symmetric, place] >= 0
    assert 0.1 < known / answer[:, symmetric].size < 1
    assert (answer[:, activation_patching.CORRUPTIONS.index("noise")] == -1).all()


def test_other_corruptions_have_answers_of_their_own(composed):
    """A composer answers the query with the exchanged token, if that query has an answer."""
    shares = composed.fraction.sel(
        direction="noising", outcome="counterfactual", token="r2", pos="r2"
    )
    symmetric, noise = (shares.sel(kind=kind) for kind in ("symmetric", "noise"))
    corrupted = composed.corrupted.sel(token="r2")
    np.testing.assert_allclose(symmetric.sel(layer=0), corrupted.sel(kind="symmetric"), atol=1e-6)
    assert (corrupted.sel(kind="symmetric") > 0.1).all()
    assert (noise == 0).all() and (corrupted.sel(kind="noise") == 0).all()
    assert (corrupted.sel(kind="counterfactual") == 1).all()
    difference = composed.logit_difference.sel(direction="noising", layer=0, token="r2", pos="r2")
    assert (difference.sel(kind="symmetric") < -5).all()  # for all queries that have an answer
    assert np.isnan(difference.sel(kind="noise")).all()
    assert (composed.logit_difference_n.sel(kind="noise") == 0).all()


MUTATIONS = {
    "base and donor exchanged": (
        "patch_states",
        lambda real: (
            lambda model, params, base, donor, **kw: real(model, params, donor, base, **kw)
        ),
    ),
    "positions reversed": (
        "patch_states",
        lambda real: lambda *runs, **only: real(*runs, **only)[:, ::-1],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_instrument_says_something_else(data, name, monkeypatch):
    attribute, change = MUTATIONS[name]
    monkeypatch.setattr(
        activation_patching, attribute, change(getattr(activation_patching, attribute))
    )
    model, params = composer(data)
    result = measure(ActivationPatching(), InMemory(model, data, [params]), progress=False)
    assert ActivationPatching().claims(result.isel(step=0)) != TRUE


@pytest.mark.slow
def test_figures_say_how_to_read_them(result):
    for figure in ActivationPatching().figures(result):
        assert "null" in figure.caption
        figure.drawing.draw_without_rendering()
