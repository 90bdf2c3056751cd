"""Rank-one edits store exactly the new value, and are the published formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.rank_one import (
    RIDGE,
    exact_keys,
    memory,
    random_change,
    rank_one_changes,
    search_values,
    second_moment,
)
from implicit_reasoning.analysis.editing.value_search import FactPrompts, ValueSearch
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.surgery import LowRankChange, write_change
from tests.model.exchange.models import filled

MODEL = Transformer(Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=2, d_mlp=24))
LAYER = 0
SEARCH = ValueSearch(steps=200, rate=0.3, enough=0.1, divergence=0.0, decay=0.0)
CAREFUL = ValueSearch(steps=200, rate=0.3, enough=0.1, divergence=1.0, decay=0.0)


@pytest.fixture(scope="module")
def made():
    """Edit four facts of a random model, and return everything that went into the edits."""
    random = np.random.default_rng(0)
    params = filled(MODEL, 3)
    params["unembed"]["W_U"] *= 20  # so that the model can be certain
    tokens = random.integers(0, 23, (40, 3)).astype(np.int32)
    weight = (random.random(tokens.shape) < 0.7).astype(np.float32)
    facts = random.integers(0, 23, (4, 3, 2)).astype(np.int32)
    there = np.array([[True, True, number < 2] for number in range(4)])
    prompts = FactPrompts(*map(jnp.asarray, (facts, there, np.array([1, 4, 9, 16], np.int32))))

    @jax.jit
    def compute(params):
        moment, unit = second_moment(MODEL, params, jnp.asarray(tokens), jnp.asarray(weight), LAYER)
        keys = exact_keys(MODEL, params, prompts, LAYER)
        solved = memory(moment).solve(keys)
        changes = rank_one_changes(keys, solved, jnp.zeros((len(keys), 16)))
        added, careful = (
            search_values(MODEL, params, prompts, LAYER, changes, unit, search)
            for search in (SEARCH, CAREFUL)
        )
        changes = changes._replace(values=added[:, None])
        written = jax.vmap(lambda one: write_change(MODEL, params, LAYER, one))(changes)
        site = f"blocks.{LAYER}.mlp.hook_post"
        acts = MODEL.forward(params, tokens, sites=(site,))[1][site]

        def answers(changes):
            def one(change, own):
                changed = write_change(MODEL, params, LAYER, change)
                return jax.nn.log_softmax(MODEL.forward(changed, own)[0][:, -1])

            return jax.vmap(one)(changes, prompts.tokens)

        return {
            "moment": moment,
            "unit": unit,
            "keys": keys,
            "solved": solved,
            "added": added,
            "changes": changes,
            "W_out": written["blocks"][str(LAYER)]["mlp"]["W_out"],
            "acts": acts,
            "before": answers(jax.tree.map(jnp.zeros_like, changes)),
            "after": answers(changes),
            "careful": answers(changes._replace(values=careful[:, None])),
        }

    found = jax.tree.map(np.asarray, compute(params))
    old = np.asarray(params["blocks"][str(LAYER)]["mlp"]["W_out"])
    return found | {"old": old, "weight": weight, "new": np.asarray(prompts.new), "there": there}


def test_the_new_matrix_maps_the_key_to_the_new_value(made):
    for key, added, new in zip(made["keys"], made["added"], made["W_out"], strict=True):
        value = key @ made["old"] + added
        np.testing.assert_allclose(key @ new, value, atol=1e-5)
        assert np.abs(added).max() > 0.01


def test_the_change_is_the_published_formula(made):
    """In float64, from the activations of the neurons."""
    share = (made["weight"] / made["weight"].sum())[..., None].astype(np.float64)
    acts = made["acts"].astype(np.float64)
    moment = np.einsum("bpi,bpj->ij", acts * share, acts)
    moment += RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    np.testing.assert_allclose(made["moment"], moment, rtol=1e-4, atol=1e-6)
    for key, added, new in zip(made["keys"], made["added"], made["W_out"], strict=True):
        solved = np.linalg.solve(moment, key.astype(np.float64))
        change = np.outer(solved, added) / (key @ solved)
        np.testing.assert_allclose(new - made["old"], change, rtol=1e-3, atol=1e-5)


def test_other_keys_change_least(made):
    """No other rank-one change that stores the value changes the outputs of all keys less."""
    change, key = made["W_out"][0] - made["old"], made["keys"][0]

    def size(matrix):
        return np.trace(matrix.T @ made["moment"] @ matrix)

    random = np.random.default_rng(0)
    for _ in range(20):
        direction = made["solved"][0] + random.normal(0, 0.05, len(key)) * np.abs(made["solved"][0])
        other = np.outer(direction / (direction @ key), made["added"][0])
        assert size(other) > size(change)


def test_the_search_stops_at_the_new_answer(made):
    before, after, careful = (
        -made[name][np.arange(4), 0, made["new"]] for name in ("before", "after", "careful")
    )
    assert (before > 1).all() and (after < SEARCH.enough).all() and (careful < before).all()
    # The search ends with the first value that is good enough, so it does not go far beyond it.
    assert (after > SEARCH.enough / 20).all()


def test_the_divergence_of_other_facts_is_part_of_the_loss(made):
    before, others = made["before"][:, 1:], made["there"][:, 1:]

    def divergence(after):
        each = (np.exp(before) * (before - after[:, 1:])).sum(-1)
        return np.where(others, each, 0).sum(1)

    assert (divergence(made["careful"]) < divergence(made["after"])).all()


def test_a_key_of_zero_cannot_be_edited():
    zero = np.zeros((1, 5), np.float32)
    found = jax.jit(rank_one_changes)(zero, zero, np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(found.keys, 0)


def test_random_changes_have_the_same_norm():
    like = LowRankChange(np.ones((1, 6), np.float32), np.full((1, 3), 2, np.float32))

    @jax.jit
    def compute(like):
        drawn = random_change(jax.random.key(0), like)
        return drawn.norm(), drawn

    norm, drawn = compute(like)
    wanted = np.linalg.norm(like.keys.T @ like.values)
    np.testing.assert_allclose(norm, wanted, rtol=1e-5)
    there = np.linalg.norm(np.asarray(drawn.keys).T @ np.asarray(drawn.values))
    np.testing.assert_allclose(there, wanted, rtol=1e-5)
