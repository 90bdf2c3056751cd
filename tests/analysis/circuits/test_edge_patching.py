"""Patched edges name the circuits of planted models, for each token of the prompt."""

import functools
import json

import numpy as np
import pytest

from implicit_reasoning.analysis import measure
from implicit_reasoning.analysis.circuits.edge_patching import EdgePatching
from implicit_reasoning.analysis.circuits.page import make_page
from implicit_reasoning.errors import InputError
from tests.analysis.planted_subject import in_words, known


@functools.cache
def patched(name, token):
    instrument = EdgePatching(pairs=f"exchange_{token}", groups=("train_ii",))
    result = measure(instrument, known(name).subject, progress=False).isel(step=-1)
    return instrument, result, instrument.claims(result)


def carriers(name, token):
    """Return the edges that carry a token in some route."""
    return {str(edge) for route in known(name).routes for edge, of in route.carried if of == token}


def strengths(result):
    """Return the edges whose sender differs, with the size of their effect."""
    of = result.isel(group=0, metric=0)
    effects = np.abs(of.effect.sel(donor="pair")).max("pos")
    differs = (of.differs > 0).any("pos")
    return {str(edge): float(effects.sel(edge=edge)) for edge in of.edge.values[differs.values]}


@pytest.mark.slow
@pytest.mark.parametrize("token", ["e1", pytest.param("r1", marks=pytest.mark.slow)])
def test_edges_that_carry_the_token_are_above_all_others(token):
    _, result, _ = patched("idle_copy", token)
    found, wanted = strengths(result), carriers("idle_copy", token)
    assert wanted < set(found)
    weakest = min(found[edge] for edge in wanted)
    others = [effect for edge, effect in found.items() if edge not in wanted]
    assert weakest > 0.5 > 1e-4 > max(others)


@pytest.mark.slow
def test_claims_are_true():
    """Edges that carry e1 are parts, and edges that carry nothing for the answer are idle."""
    _, _, told = patched("idle_copy", "e1")
    words = in_words(told, "idle_copy")
    assert not words["false"]
    parts = {claim.unit for claim in told if claim.kind == "part"}
    assert {str(edge) for edge in parts} == carriers("idle_copy", "e1")
    idle = {str(claim.unit) for claim in told if claim.kind == "idle"}
    route, of_model = known("idle_copy").routes[0], known("idle_copy").mechanism
    assert idle == {str(c.unit) for c in of_model.true if c.kind == "idle"}
    assert not idle & set(map(str, route.edges))


@pytest.mark.slow
def test_removing_an_edge_of_one_of_two_routes_breaks_nothing():
    """The other route still answers. A corrupt value makes both routes write, so it has an effect
    of at most about one half, which no single-route model shows.
    """
    _, result, told = patched("parallel", "e1")
    first, second = ({str(edge) for edge in route.edges} for route in known("parallel").routes)
    alone = sorted(carriers("parallel", "e1") & (first ^ second))
    of = result.isel(group=0, metric=0).sel(edge=alone)
    assert len(alone) > 3
    assert float(of.broken.sel(donor="zero").max()) == 0
    assert 0.2 < float(np.abs(of.effect.sel(donor="pair")).max()) < 0.8
    assert not in_words(told, "parallel")["false"]


@pytest.mark.slow
def test_the_figures_draw_what_was_measured():
    instrument, result, _ = patched("idle_copy", "e1")
    over_steps, graph = instrument.figures(result.expand_dims("step"))
    shown = [text.get_text() for text in over_steps.drawing.axes[0].get_yticklabels()]
    assert {name.partition(" @ ")[0] for name in shown} >= carriers("idle_copy", "e1")
    lines = [text for text in graph.drawing.axes[0].texts if text.arrow_patch is not None]
    assert len(lines) >= len(carriers("idle_copy", "e1"))


@pytest.mark.slow
def test_the_page_has_the_numbers_that_were_measured():
    _, result, _ = patched("idle_copy", "e1")
    page = make_page(result.expand_dims("step").assign_coords(step=[7]))
    text = page.body.partition('<script type="application/json" id="circuit-data">')[2]
    data = json.loads(text.partition("</script>")[0])
    assert data["steps"] == [7] and page.body.count('class="edge"') == len(data["names"])
    for name, effect in zip(data["names"], data["effect"][0][0][0], strict=True):
        edge, _, pos = name.partition(" @ ")
        at = result.effect.isel(group=0, metric=0).sel(donor="pair", edge=edge, pos=pos)
        assert effect == pytest.approx(float(at), abs=5e-4)
    assert {name.partition(" @ ")[0] for name in data["names"]} >= carriers("idle_copy", "e1")


def test_an_unknown_group_is_refused():
    with pytest.raises(InputError, match="no group 'train_iii'; choose from train_ii"):
        measure(EdgePatching("exchange_e1", groups=("train_iii",)), known("idle_copy").subject)
