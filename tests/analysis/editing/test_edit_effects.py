"""What one edit changes, in models that are not two plain blocks: chains of thought, and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.edit_cases import choose_edits, other_prompts
from implicit_reasoning.analysis.editing.edit_effects import measure_effects
from implicit_reasoning.analysis.editing.edit_summary import explain
from implicit_reasoning.analysis.editing.edited_models import answer_logits
from implicit_reasoning.analysis.editing.fact_edit import choose_method, parse_edit
from implicit_reasoning.analysis.editing.page import make_page
from implicit_reasoning.analysis.editing.state_edits import overwrite
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.model import Spec, Transformer
from tests.analysis.planted_subject import dataset
from tests.model.exchange.models import filled


def measured(data, layer, **loops):
    """Return a random model before and after a change of one block, and the effects."""
    spec = Spec(data.n_vocab, n_ctx=4, n_layers=2, d_model=16, n_heads=2, d_mlp=24, **loops)
    model = Transformer(spec)
    before = filled(model, 3)
    before["embed"]["W_E"] *= 20
    before["unembed"]["W_U"] *= 4
    after = jax.tree.map(lambda leaf: leaf, before)
    after["blocks"][str(layer % 2)]["mlp"]["W_out"] *= -1
    facts, chosen = data.world.facts, choose_edits(data, 1)
    fact = f"e{facts.head[chosen.fact[0]]},r{facts.relation[chosen.fact[0]]}"
    edit = parse_edit(data.world, fact, f"e{chosen.new[0]}")
    method = choose_method(model, "rome", [layer])
    effects = measure_effects(model, before, after, data, edit, method)
    return model, before, after, as_if_known(effects)


def as_if_known(effects):
    """Return effects as if the model had answered every prompt before the edit."""
    known = np.ones_like(effects.before.is_old)
    return effects._replace(before=effects.before._replace(is_old=known))


@pytest.fixture(scope="module")
def thinking():
    return measured(dataset(chain_of_thought=True), 1)


@pytest.fixture(scope="module")
def looped():
    return measured(dataset(), 3, n_loops=2)


def state_at_fact(model, params, effects):
    """Return the states S[layer] at r1 of the fact."""
    prompt = effects.prompts.tokens[:1]
    found = jax.jit(lambda params: model.forward(params, prompt, sites=model.resid_sites)[1])
    return np.stack([np.asarray(found(params)[site][0, 1]) for site in model.resid_sites])


def test_with_a_chain_of_thought_models_read_the_bridge_that_they_output(thinking):
    """Without it, every chain would be answered with entity 0 in the place of the bridge."""
    model, before, after, effects = thinking
    tokens, position = (jnp.asarray(getattr(effects.prompts, n)) for n in ("tokens", "position"))
    change = np.subtract(*(state_at_fact(model, one, effects)[2] for one in (after, before)))
    place = jnp.where(effects.prompts.kind < 3, effects.prompts.place, -1)

    @jax.jit
    def answers(params):
        edits = overwrite((1,), "hook_resid_post", place, jnp.asarray(change))
        of_edits = answer_logits(model, before, tokens, position, edits, whole=True)
        return answer_logits(model, params, tokens, position).argmax(-1), of_edits.argmax(-1)

    np.testing.assert_array_equal(effects.before.token, answers(before)[0])
    np.testing.assert_array_equal(effects.after.token, answers(after)[0])
    np.testing.assert_array_equal(effects.state.token, answers(before)[1])
    raw = jax.jit(lambda: model.forward(before, tokens)[0].argmax(-1))()
    raw = np.take_along_axis(np.asarray(raw), effects.prompts.position[:, None], 1)[:, 0]
    chains = effects.of_kind("first hop")
    assert (effects.before.token[chains] != raw[chains]).any()
    np.testing.assert_array_equal(effects.before.bridge[chains], _bridges(model, before, effects))


def test_with_a_chain_of_thought_other_prompts_are_answered_in_the_same_way(thinking):
    model, before, after, effects = thinking
    others = other_prompts(dataset(chain_of_thought=True), effects.edit.as_edits(), 500, seed=0)

    @jax.jit
    def right(params):
        tokens, position, answer = map(jnp.asarray, (others.tokens, others.position, others.answer))
        return answers_with(answer_logits(model, params, tokens, position), answer)

    counts = np.asarray(right(before)) & ~others.related[0]
    assert counts.sum() > 5
    np.testing.assert_array_equal(effects.after.kept, np.asarray(right(after))[counts])


def _bridges(model, params, effects):
    chains = effects.prompts.tokens[effects.of_kind("first hop")][:, :3]
    return jax.jit(lambda: model.forward(params, chains)[0][:, 2].argmax(-1))()


def test_with_a_chain_of_thought_the_sentences_count_the_bridges_that_are_output(thinking):
    """The fact is read where the bridge is output, so an edit of the last block reaches chains."""
    model, _, after, effects = thinking
    new = int((np.asarray(_bridges(model, after, effects)) == effects.edit.new).sum())
    told = explain(effects)["first hop"]
    assert f"it outputs the new tail in {new} and the old tail in" in told
    assert "no later block" not in told
    assert " … " not in told and "…" in make_page(effects, "runs/one", 3).body


def test_in_a_looped_model_a_block_changes_in_every_loop(looped):
    model, before, after, effects = looped
    assert (effects.read, effects.changed) == ((2, 4), (1, 3))
    told = explain(effects)
    assert "no later block reads" not in told["first hop"]
    assert "S[2] or S[4] moves by" in told["second hop"]
    change = state_at_fact(model, after, effects) - state_at_fact(model, before, effects)
    assert np.linalg.norm(change[2]) > 0.1 and not change[:2].any()
    body = make_page(effects, "runs/one", 3).body
    assert body.count('<tr class="changed">') == 3  # S[2], S[3] and S[4]

    chain = effects.of_kind("second hop")[0]
    tokens, place = effects.prompts.tokens[chain], effects.prompts.place[chain]
    states = jax.jit(lambda params: model.forward(params, tokens[None], sites=model.resid_sites)[1])
    moved = [
        np.asarray(states(after)[site] - states(before)[site])[0, place]
        for site in (model.resid_sites[layer] for layer in effects.read)
    ]
    parts = [float(one @ change[2] / (change[2] @ change[2])) for one in moved]
    assert parts[0] != pytest.approx(parts[1], abs=0.01)
    assert effects.written[chain] == pytest.approx(max(parts), abs=1e-3)


def test_in_a_looped_model_the_state_is_overwritten_in_one_loop(looped):
    model, before, after, effects = looped
    change = np.subtract(*(state_at_fact(model, one, effects)[2] for one in (after, before)))
    place = jnp.where(effects.prompts.kind < 3, effects.prompts.place, -1)
    at = jnp.asarray(effects.prompts.position)[:, None, None]

    def highest(*depths):
        @jax.jit
        def share():
            edits = overwrite(depths, "hook_resid_post", place, jnp.asarray(change))
            logits = model.forward(before, effects.prompts.tokens, edits=edits)[0]
            return jax.nn.softmax(jnp.take_along_axis(logits, at, axis=1)).max((1, 2))

        return share()

    np.testing.assert_allclose(effects.state.probability, highest(1), atol=1e-4)
    assert np.abs(np.asarray(highest(1, 3) - highest(1))).max() > 0.01
