"""Knock-outs of edges change answers where hand-written models move something, and nowhere else."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.components import knock_out
from implicit_reasoning.analysis.components.attention import Attention
from implicit_reasoning.analysis.components.knock_out import (
    existing_edges,
    knock_outs,
    match_edges,
    match_everywhere,
)
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.model import Edit, Spec, Transformer, mask
from tests.analysis.planted_subject import known
from tests.model.exchange.models import filled

POSITIONS = ("e1", "r1", "r2")


@pytest.fixture(scope="module")
def result():
    subject = known("idle_copy").subject
    runner = Runner(Attention(), subject.model)
    found = measure(Attention(), subject, progress=False, runner=runner)
    assert runner.traces == 1
    return found


def heads_of(name, variable):
    """Return (block, head) of the planted heads that move a variable, in the order of blocks."""
    claims = known(name).mechanism.true
    heads = [one.unit for one in claims if one.kind == "moves" and one.variable == variable]
    return sorted((head.layer, head.head) for head in heads)


def test_patterns_and_written_vectors_of_planted_heads(result):
    one = result.isel(step=0, group=0)
    routes = {"e1": ("e1", "r1"), "e2": ("r1", "r2")}
    moving = [(at, routes[name]) for name in routes for at in heads_of("idle_copy", name)]
    assert len(moving) == 3  # one of the heads that move e2 is idle
    for (block, head), (source, target) in moving:
        edge = {"block": block, "head": head, "query_pos": target, "key_pos": source}
        assert one.pattern.sel(edge) == pytest.approx(1)
        assert one.written.sel(edge) > 0.5
    # A head without weights attends uniformly and writes nothing.
    block, head = moving[0][0]
    nothing = one.sel(block=block, head=(head + 1) % 3)
    np.testing.assert_allclose(nothing.pattern.sel(query_pos="r2"), 1 / 3, atol=1e-6)
    assert nothing.written.max() == 0


def test_exactly_the_edges_of_used_heads_change_answers(result):
    one = result.isel(step=0).sel(group="train_ii")
    unchanged = one.fraction.sel(outcome="unchanged")
    needed = {(*heads_of("idle_copy", "e1")[0], "r1", "e1")}
    used = heads_of("idle_copy", "e2")[1]  # the earlier head makes the idle copy
    needed.add((*used, "r2", "r1"))
    for block in one.block.values:
        for head in range(3):
            for target, query in enumerate(POSITIONS[1:], start=1):
                for key in POSITIONS[: target + 1]:
                    at = {"block": block, "query_pos": query, "key_pos": key}
                    at |= {"cut": f"head {head}"}
                    share = unchanged.sel(at)
                    if (block, head, query, key) in needed:
                        assert share < 0.2
                        assert one.margin.sel(at) < one.clean_margin - 5
                    else:
                        assert share == 1
    # The knock-out in all blocks breaks what any of the heads moves.
    everywhere = one.everywhere_fraction.sel(outcome="unchanged")
    assert (everywhere.sel(query_pos="r2", key_pos=["e1", "r2"]) == 1).all()
    assert everywhere.sel(query_pos="r2", key_pos="r1") < 0.2
    assert everywhere.sel(query_pos="r1", key_pos="e1") < 0.2
    shares = one.fraction.sel(query_pos=["r1", "r2"], key_pos="e1").sum("outcome")
    np.testing.assert_allclose(shares, 1, atol=1e-6)


def test_the_first_position_and_later_keys_cannot_be_knocked_out(result):
    one = result.isel(step=0, group=0)
    assert one.counts.sel(query_pos="e1").max() == 0
    assert np.isnan(one.fraction.sel(query_pos="r1", key_pos="r2")).all()
    assert one.counts.sel(query_pos="r1", key_pos="r1") == one.correct


SPEC = Spec(d_vocab=11, n_ctx=3, n_layers=1, d_model=8, n_heads=2, d_mlp=16, n_loops=2)
RANDOM = Transformer(SPEC)
TOKENS = np.random.default_rng(0).integers(0, 11, (5, 3), np.int32)
ANSWER, OTHER = np.array([1, 2, 3, 4, 5]), np.array([2, 3, -1, 5, 6])


EXAMPLE = {"tokens": TOKENS, "answer": ANSWER, "other": OTHER}


@jax.jit
def grid(params, example):
    return knock_outs(RANDOM, params, example)


@jax.jit
def margin_with(params, masks):
    edits = {
        f"blocks.{block}.attn.hook_attn_scores": Edit(mask, (masks[block], -np.inf))
        for block in range(SPEC.depth)
    }
    logits = RANDOM.forward(params, TOKENS, edits=edits)[0][:, -1]
    own = np.eye(11, dtype=bool)[ANSWER]
    rest = jax.numpy.where(own, -np.inf, logits).max(1)
    return jax.numpy.where(own, logits, 0).sum(1) - rest


def brute_force_margins(params, blocks, heads):
    found = np.full((3, 3, 5), np.nan)
    for query, key in np.argwhere(existing_edges(3)):
        masks = np.zeros((SPEC.depth, 1, 2, 3, 3), bool)
        for head in heads:
            masks[blocks, 0, head, query, key] = True
        found[query, key] = margin_with(params, masks)
    return found


def differences(found, params):
    """Return the largest difference from full forward passes with edits."""
    there = existing_edges(3)
    largest = 0.0
    for cut, heads in enumerate(([0], [1], [0, 1])):
        for block in range(SPEC.depth):
            wanted = brute_force_margins(params, [block], heads)
            difference = np.abs(np.asarray(found["margin"])[block, cut] - wanted)[there]
            largest = max(largest, difference.max())
    wanted = brute_force_margins(params, list(range(SPEC.depth)), [0, 1])
    difference = np.abs(np.asarray(found["everywhere_margin"]) - wanted)[there]
    return max(largest, difference.max())


def test_knock_outs_equal_full_forward_passes():
    """A looped model: every loop of a block is knocked out on its own."""
    params = filled(RANDOM)
    assert differences(grid(params, EXAMPLE), params) < 5e-5


@pytest.mark.slow
def test_a_pattern_that_is_not_renormalised_is_noticed(monkeypatch):
    def without_renormalisation(scores):
        there = ~jax.numpy.eye(scores.shape[-1], dtype=bool)[:, None, None]
        return jax.numpy.where(there, jax.nn.softmax(scores, axis=-1)[None], 0.0)

    params = filled(RANDOM)
    monkeypatch.setattr(knock_out, "_without_each_key", without_renormalisation)
    found = jax.jit(lambda p, e: knock_outs(RANDOM, p, e))(params, EXAMPLE)
    assert differences(found, params) > 1e-3


def test_an_edge_is_matched_with_the_most_similar_edge_of_its_query():
    """Candidates have the same kind of cut, and the answer can depend on them."""
    rng = np.random.default_rng(0)
    mass = rng.random((3, 3, 4, 4)).astype(np.float32)  # two heads and all heads
    edges, number = existing_edges(4), np.arange(mass.size).reshape(*mass.shape, 1)
    found = np.asarray(jax.jit(lambda m, n: match_edges(m, edges)(n))(mass, number))[..., 0]
    for block, cut, query, key in np.ndindex(mass.shape):
        if not edges[query, key]:
            continue
        candidates = [
            (b, c, query, k)
            for b, c, k in np.ndindex(3, 3, 4)
            if edges[query, k]
            and (c == 2) == (cut == 2)
            and (b < 2 or query == 3)
            and (b, c, k) != (block, cut, key)
        ]
        best = min(candidates, key=lambda at: abs(mass[at] - mass[block, cut, query, key]))
        assert found[block, cut, query, key] == number[best][0]
    total = rng.random((4, 4)).astype(np.float32)
    number = np.arange(16).reshape(4, 4, 1)
    found = np.asarray(jax.jit(lambda m, n: match_everywhere(m, edges)(n))(total, number))
    for query, key in np.argwhere(edges):
        others = [k for k in range(query + 1) if k != key]
        best = min(others, key=lambda k: abs(total[query, k] - total[query, key]))
        assert found[query, key, 0] == 4 * query + best


@pytest.mark.slow
def test_figures_say_how_to_read_them(result):
    for figure in Attention().figures(result):
        assert "cell" in figure.caption
        figure.drawing.draw_without_rendering()
