"""The parts of direct logit attribution sum to the logit difference, and name what writes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, measure
from implicit_reasoning.analysis.components.direct_logit_attribution import (
    DirectLogitAttribution,
    component_names,
    direct_parts,
    written_sites,
)
from implicit_reasoning.model import Edit, Spec, Transformer, add, set_to
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.runs import Run
from tests import shared
from tests.analysis.by_hand import composer, dataset
from tests.model.exchange.models import filled, tokens_for

SPEC = {"d_vocab": 11, "n_ctx": 3, "n_layers": 2, "d_model": 8, "n_heads": 2, "d_mlp": 6}
SPECS = {
    "gpt2": Spec(**SPEC),
    "no norm": Spec(**SPEC, normalization="none"),
    "looped, tied, bias": Spec(
        **SPEC | {"n_layers": 1}, n_loops=2, tied=True, unembed_bias=True, head_width=3
    ),
}
ANSWER, OTHER = np.array([[1, 4, 7], [2, 2, 2]]), np.array([[3, 5, 0], [1, 9, 10]])


def parts_of(model, params, tokens):
    """Return the parts, and the logit differences that they sum to."""

    def both(params):
        logits, values = forward_at(model, params, tokens, sites=written_sites(model))
        rows = jnp.arange(len(tokens))
        difference = logits[rows, 0, ANSWER] - logits[rows, 0, OTHER]
        return direct_parts(model, params, values, jnp.array(ANSWER), jnp.array(OTHER)), difference

    return jax.device_get(jax.jit(both)(params))


def test_the_other_query_of_the_null_is_of_the_same_group():
    data = dataset()
    model, _ = composer(data)
    examples = DirectLogitAttribution().examples(model, data)
    own, other = examples.inputs["answer"]
    for number in range(len(examples.groups)):
        here = examples.group == number
        np.testing.assert_array_equal(np.sort(own[here]), np.sort(other[here]))
    # Different queries may have equal answers, so the counterfactual answers are compared too.
    counterfactual = examples.inputs["counterfactual"]
    both = np.concatenate([examples.inputs["answer"][:, None], counterfactual], axis=1)
    assert (both[0] != both[1]).any(0).mean() > 0.99


@pytest.mark.parametrize("name", SPECS)
def test_the_parts_sum_to_the_logit_difference(name):
    model = Transformer(SPECS[name])
    parts, difference = parts_of(model, filled(model), tokens_for(model.spec, rows=3))
    assert len(parts) == len(component_names(model))
    assert np.abs(difference).min() > 0.01
    np.testing.assert_allclose(parts.sum(0), difference, atol=1e-4)


def test_a_part_is_what_the_difference_loses_if_only_the_final_norm_reads_the_loss():
    """With the scale frozen, the state without the output of a component lacks the part."""
    model = Transformer(SPECS["gpt2"])
    params, tokens = filled(model), tokens_for(model.spec, rows=3)
    parts, difference = parts_of(model, params, tokens)
    last = "blocks.1.hook_resid_post"

    @jax.jit
    def without(params):
        sites = ("ln_final.hook_scale", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_result")
        _, values = model.forward(params, tokens, sites=sites)
        outputs = {
            "m0": values[sites[1]] - params["blocks"]["0"]["mlp"]["b_out"][None, None],
            "a1.h1": values[sites[2]][:, :, 1],
        }
        found = {}
        for name, output in outputs.items():
            edits = {last: Edit(add, -output), sites[0]: Edit(set_to, values[sites[0]])}
            logits = model.forward(params, tokens, edits=edits)[0][:, -1]
            rows = jnp.arange(len(tokens))
            found[name] = logits[rows, ANSWER] - logits[rows, OTHER]
        return found

    for name, left in without(params).items():
        part = parts[component_names(model).index(name)]
        assert np.abs(part).max() > 0.01
        np.testing.assert_allclose(difference - left, part, atol=1e-4)


def test_the_answer_of_a_composer_is_written_by_its_last_mlp():
    data = dataset()
    model, params = composer(data)
    result = measure(DirectLogitAttribution(), InMemory(model, data, [params]), progress=False)
    own = result.sel(truth="own").isel(step=0)
    np.testing.assert_allclose(own.part.sum("component"), own.logit_difference, atol=1e-4)
    share = own.part / own.logit_difference
    assert (share.sel(component="m1") > 0.999).all()
    null = result.logit_difference.sel(truth="another query")
    assert np.abs(null).max() < 0.2 * own.logit_difference.min()
    (figure,) = DirectLogitAttribution().figures(result)
    assert "null" in figure.caption
    figure.drawing.draw_without_rendering()


def test_a_trained_run():
    run = Run(shared.finished())
    result = measure(DirectLogitAttribution(), run, run.steps[-1:], progress=False)
    assert np.abs(result.logit_difference).max() > 0.1
    np.testing.assert_allclose(result.part.sum("component"), result.logit_difference, atol=1e-4)
