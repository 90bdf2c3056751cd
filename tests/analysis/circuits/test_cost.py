"""Estimated costs agree with XLA's count, and the most exact method that fits is named."""

import dataclasses

import jax
import pytest

from implicit_reasoning.analysis.circuits import scores
from implicit_reasoning.analysis.circuits.cost import fitting_method, score_costs
from implicit_reasoning.analysis.circuits.edge_patching import EdgePatching
from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.graph import EdgeGraph
from tests.model.exchange.models import filled, tokens_for

# Wide enough that products of matrices are nearly all FLOPs.
SPEC = Spec(d_vocab=60, n_ctx=4, n_layers=2, d_model=256, n_heads=2, d_mlp=1024)
PAIRS = 4


def counted(method, **options):
    """Return XLA's count before it compiles. It counts the loop over both prompts once."""
    model, graph = Transformer(SPEC), EdgeGraph(SPEC, 4)
    clean = tokens_for(SPEC, rows=PAIRS)

    def run(params):
        runs = scores.two_runs(model, params, clean, (clean + 3) % SPEC.d_vocab)
        return method(model, params, graph, runs, lambda logits: logits[:, 0], **options)

    one_run = jax.jit(lambda params: model.forward(params, clean)[0][:, -1:])
    flops = [jax.jit(f).lower(filled(model)).cost_analysis()["flops"] for f in (run, one_run)]
    return sum(flops)


@pytest.mark.parametrize("by_position", [pytest.param(True, marks=pytest.mark.slow), False])
def test_exact_scores(by_position):
    costs = score_costs(EdgeGraph(SPEC, 4), PAIRS, by_position=by_position)
    wanted = counted(scores.exact, by_position=by_position)
    assert costs["exact"] == pytest.approx(wanted, rel=0.15)


def test_eap():
    costs = score_costs(EdgeGraph(SPEC, 4), PAIRS)
    assert costs["EAP"] == pytest.approx(counted(scores.eap), rel=0.15)
    assert costs["EAP"] < costs["EAP-IG inputs"] < costs["EAP-IG activations"]


@pytest.mark.slow
def test_an_instrument_says_what_a_large_model_costs(capsys):
    spec = Spec(d_vocab=300, n_ctx=3, n_layers=8, d_model=768, n_heads=12, d_mlp=3072)
    dataset = small_world()
    EdgePatching().examples(Transformer(spec), dataset)
    message = capsys.readouterr().err
    assert "edge_patching patches 35,909 edges" in message and "EAP" in message
    small = dataclasses.replace(spec, n_layers=2, d_model=64, n_heads=2, d_mlp=128)
    EdgePatching().examples(Transformer(small), dataset)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_the_most_exact_method_that_fits():
    pocket = Spec(d_vocab=130, n_ctx=3, n_layers=2, d_model=256, n_heads=4, d_mlp=1024)
    published = Spec(d_vocab=300, n_ctx=3, n_layers=8, d_model=768, n_heads=12, d_mlp=3072)
    budget = 1e12  # seconds on two cores
    assert fitting_method(score_costs(EdgeGraph(pocket, 3), 64), budget) == "exact"
    costs = score_costs(EdgeGraph(published, 3), 64)
    assert fitting_method(costs, budget) not in ("exact", "EAP-IG activations")
    with pytest.raises(InputError, match=r"no method fits 1e\+03 FLOPs; the cheapest, EAP, needs"):
        fitting_method(costs, 1e3)
