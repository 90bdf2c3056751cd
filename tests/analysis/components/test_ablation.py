"""Ablated runs equal those of a model with other weights, and planted heads are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.components import ablation
from implicit_reasoning.analysis.components.ablation import Ablation
from implicit_reasoning.analysis.components.ablation_runs import (
    ablate_components,
    ablate_heads,
    component_names,
    make_donors,
    mean_run,
    run,
)
from implicit_reasoning.analysis.patching.outcomes import margin
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.model import Edit, mask
from implicit_reasoning.model.units import Head
from tests.analysis.planted_subject import in_words, known
from tests.analysis.subjects import random_checkpoints

SITES = {
    "attention": ("hook_attn_out",),
    "MLP": ("hook_mlp_out",),
    "block": ("hook_attn_out", "hook_mlp_out"),
    "state": ("hook_resid_post",),
    "head 0": ("attn.hook_z",),
    "head 1": ("attn.hook_z",),
}
ALL_SITES = sorted({name for names in SITES.values() for name in names})


@pytest.fixture(scope="module")
def grids():
    """Return a random model, prompts, and the logits of all ablations with three donors."""
    subject = random_checkpoints(1)
    model, params = subject.model, subject.checkpoints[0]
    tokens, other, third = np.random.default_rng(0).integers(0, 9, (3, 4, 3)).astype(np.int32)

    @jax.jit
    def all_of_it(params):
        base = run(model, params, jnp.asarray(tokens))[1]
        mean = mean_run(model, params, jnp.asarray(third))
        donors = make_donors(model, params, base, mean, jnp.asarray(other[None]))
        grid = jax.lax.map(lambda donor: ablate_components(model, params, base, donor), donors)
        ablated = np.zeros((4, 2, 2), bool)
        ablated[:2, 0, 1] = ablated[2:, 1] = True
        resampled = {site: values[2] for site, values in donors.items()}
        return grid, ablate_heads(
            model, params, jnp.asarray(tokens), resampled, jnp.asarray(ablated)
        )

    grid, heads = jax.device_get(all_of_it(params))
    return model, params, (tokens, other, third), grid, heads


def test_replaced_outputs_have_the_logits_of_an_edited_forward_pass(grids):
    """Every part at every place, for zero, mean and resample ablation; blocks by their sum."""
    model, params, (tokens, other, third), grid, heads = grids
    names, depth = component_names(model), model.spec.depth
    wanted = tuple(f"blocks.{b}.{name}" for b in range(depth) for name in ALL_SITES)

    @jax.jit
    def forward(params, edits):
        return model.forward(params, tokens, edits=edits)[0][:, -1]

    read = jax.jit(lambda params, prompts: model.forward(params, prompts, sites=wanted)[1])
    own, of_other, of_third = (jax.device_get(read(params, t)) for t in (tokens, other, third))

    def new(kind, site):
        mean = np.broadcast_to(of_third[site].mean(0, keepdims=True), own[site].shape)
        return (np.zeros_like(own[site]), mean, of_other[site])[kind]

    def edited(kind, block, part, where):
        """Edit all sites at once with masks, so that one program has all cells."""
        edits = {}
        for site in wanted:
            here, value = np.zeros(own[site].shape, bool), new(kind, site)
            name = site.removeprefix(f"blocks.{block}.")
            if name in SITES[part]:
                here[:, where] = True
                if name == "attn.hook_z":
                    here &= (np.arange(here.shape[2]) == int(part[-1]))[:, None]
            edits[site] = Edit(mask, (here, value))
        return jax.device_get(forward(params, edits))

    for kind in range(3):
        for block in range(depth):
            for number, part in enumerate(names):
                for place, where in enumerate((0, 1, 2, slice(None))):
                    expected = edited(kind, block, part, where)
                    found = grid[kind, block, number, place]
                    about = f"{kind} {block} {part} {where}"
                    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=about)
    both = [edited(2, 0, "head 1", slice(None))[:2]]
    z = "blocks.1.attn.hook_z"
    whole = {s: Edit(mask, (np.full(own[s].shape, s == z), new(2, s))) for s in wanted}
    both.append(jax.device_get(forward(params, whole))[2:])
    np.testing.assert_allclose(heads, np.concatenate(both), atol=1e-5)


def test_heads_without_an_output_matrix_are_heads_ablated_to_zero(grids):
    """The same by the weights, without any edit: W_O of one head is zero."""
    model, params, (tokens, _, _), grid, _ = grids
    forward = jax.jit(lambda p: model.forward(p, tokens)[0][:, -1])
    for block in range(model.spec.depth):
        for head in range(model.spec.n_heads):
            attn = params["blocks"][str(block)]["attn"]
            without = attn | {"W_O": attn["W_O"] * (np.arange(2) != head)[:, None, None]}
            blocks = params["blocks"] | {
                str(block): params["blocks"][str(block)] | {"attn": without}
            }
            number = component_names(model).index(f"head {head}")
            np.testing.assert_allclose(
                grid[0, block, number, -1], forward(params | {"blocks": blocks}), atol=1e-5
            )


def test_heads_are_sorted_by_examples_of_the_other_half():
    effects = np.zeros((1, 1, 3, 4), np.float32)
    effects[0, 0, :, :2] = np.array([1, 2, 3])[:, None]  # examples of half 0
    effects[0, 0, :, 2] = [5, 0, 1]
    effects[0, 0, :, 3] = [0, 900, 900]  # does not count
    counts, half = np.array([[True, True, True, False]]), np.array([0, 0, 1, 1])
    arrays = map(jnp.asarray, (effects, counts, half))
    ranks = jax.jit(ablation._ranks)(*arrays, jax.random.key(0))
    first, last = ranks[:, 0, 0, 0], ranks[:, 0, 1, 0]
    np.testing.assert_array_equal(first, [[0, 2, 1]] * 2 + [[2, 1, 0]] * 2)
    np.testing.assert_array_equal(last, 2 - first)
    np.testing.assert_array_equal(np.sort(ranks[:, 0, 2, 0], -1), [[0, 1, 2]] * 4)


def test_the_margin_is_the_distance_to_the_best_other_token():
    logits = jnp.asarray([[[1.0, 5.0, 3.0], [4.0, 5.0, 3.0]]])
    found = jax.jit(margin)(logits, jnp.asarray([1, 2]))
    np.testing.assert_allclose(found, [[2.0, -2.0]])


@pytest.fixture(scope="module")
def idle():
    """Measure a planted composer with a second head that copies the bridge, which nothing reads.

    To save time, only 64 training chains are measured.
    """
    instrument, subject = Ablation(), known("idle_copy").subject
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "splits_of_full_prompts", lambda _: ("train_ii",))
        patch.setattr(ablation, "_MAX_ROWS", 64)
        runner = Runner(instrument, subject.model)
        result = measure(instrument, subject, progress=False, runner=runner)
    assert runner.traces <= 2
    return result


@pytest.mark.slow
def test_heads_of_the_circuit_are_named_and_an_idle_head_is_not(idle):
    claims = Ablation().claims(idle.isel(step=0))
    route = known("idle_copy").mechanism
    heads = {c.unit for c in route.true if c.kind == "moves"}
    needed = {c.unit for c in route.true if c.kind == "part"} & heads
    assert {claim.unit for claim in claims} == needed and len(heads - needed) == 1
    assert not in_words(claims, "idle_copy")["false"]


@pytest.mark.slow
def test_planted_shares_are_exact_and_controls_differ(idle):
    found = idle.isel(step=0).sel(group="train_ii")
    shares = found["fraction"].sum("outcome")
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    accuracy = found["accuracy"].sel(kind="zero", pos="all")
    needed = {str(c.unit) for c in Ablation().claims(idle.isel(step=0))}
    for block in range(3):
        for head in range(3):
            there = str(Head(block, head)) in needed
            right = float(accuracy.sel(block=block, part=f"head {head}"))
            assert right < 0.3 if there else right == 1
    # Block 2 looks up the answer. With the mean, all answers are the most frequent one. With the
    # output for another chain with the same answer, nothing changes.
    at = {"block": 2, "part": "MLP", "pos": "r2", "outcome": "unchanged"}
    answering = found["fraction"].sel(at)
    assert answering.sel(kind="zero") == 0
    assert answering.sel(kind=["mean", "resample"]).max() < 0.2
    assert answering.sel(kind="same answer") == 1


@pytest.mark.slow
def test_cumulative_ablation_keeps_answers_until_a_needed_head_is_gone(idle):
    found = idle.isel(step=0).sel(group="train_ii", kind="resample")["cumulative"]
    largest, smallest = (found.sel(order=order) for order in ablation.ORDERS[:2])
    np.testing.assert_array_equal(smallest[:8], 1)  # 7 of 9 heads are not needed
    assert smallest[8] < 0.3 and largest[0] == 1 and largest[1] < 0.3
    for figure in Ablation().figures(idle):
        figure.drawing.draw_without_rendering()
