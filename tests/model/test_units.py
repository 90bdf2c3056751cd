"""Units of every type are named, ordered and saved in the same way."""

import json

import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.units import (
    Edge,
    Fact,
    Feature,
    Head,
    Neuron,
    State,
    WholeModel,
    unit_from_json,
)

UNITS = [
    WholeModel(),
    State(1, "e1"),
    State(1, "r1"),
    State(2, "e1"),
    Head(0, 2),
    Head(1, 0),
    Neuron(0, 17),
    Edge("a0.h3", "m1"),
    Edge("m0", "a2.h1<q>"),
    Feature("blocks.1.hook_mlp_out", 5),
    Fact(3, 1),
]


def test_units_have_one_order_whatever_their_types():
    """Units of a type are ordered by their fields, so a file of claims is always the same."""
    assert sorted(reversed(UNITS)) == UNITS
    assert not Head(0, 1) < Head(0, 1) and Head(0, 1) <= Head(0, 1)


def test_units_of_two_types_differ_even_where_their_fields_agree():
    assert len({Head(1, 2), Neuron(1, 2), Fact(1, 2)}) == 3
    assert Head(1, 2) != Neuron(1, 2) and Head(1, 2) == Head(1, 2)


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_a_unit_is_read_back_from_json(unit):
    assert unit_from_json(json.loads(json.dumps(unit.to_json()))) == unit


def test_texts():
    assert [str(unit) for unit in UNITS[2:]] == [
        "layer 1, r1",
        "layer 2, e1",
        "a0.h2",
        "a1.h0",
        "m0.n17",
        "a0.h3->m1",
        "m0->a2.h1<q>",
        "feature 5 of blocks.1.hook_mlp_out",
        "fact (3, 1)",
    ]


@pytest.mark.parametrize(
    "name", ["input->a0.h0<v>", "a0.h3->m0", "a0.h3->m1", "m0->a2.h1<q>", "input->logits"]
)
def test_edges_are_named_as_in_eap_ig(name):
    assert str(Edge.parse(name)) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a0.h3", "named sender->receiver"),
        ("a0.h3<q>->m1", "'a0.h3<q>' is not a sender"),
        ("m0->a2.h1", "'a2.h1' is not a receiver"),
        ("logits->m1", "'logits' is not a sender"),
        ("m1->m1", "m1 does not run after m1"),
        ("m1->a1.h0<q>", "does not run after"),
        ("a1.h0->a1.h1<q>", "does not run after"),
    ],
)
def test_what_is_no_edge_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        Edge.parse(name)


@pytest.mark.parametrize("kept", [{}, {"type": "Limb"}, {"type": "Head", "layer": 1}])
def test_what_is_no_unit_is_refused(kept):
    with pytest.raises(InputError, match="is not a unit"):
        unit_from_json(kept)
