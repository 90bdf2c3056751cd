"""Claims have known kinds; an instrument that makes no claims is reported so and not run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.claims import (
    CLAIM_KINDS,
    STATE_KINDS,
    Claim,
    Mechanism,
    claim_from_json,
    claimed_units,
    describe,
    judge,
)
from implicit_reasoning.analysis.instrument import Instrument
from implicit_reasoning.analysis.truth.known import KnownModel
from implicit_reasoning.analysis.truth.score import NO_CLAIMS, score
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.units import Fact, Head, Neuron, State, WholeModel
from tests.analysis.subjects import random_checkpoints

USED = Claim("used", "e2", 1, "r1")
CARRIED = Claim("carried", "e2", 1, "r1")


def test_a_claim_is_true_false_or_open():
    mechanism = Mechanism(frozenset([USED]), frozenset([CARRIED]))
    assert mechanism.holds(USED) and mechanism.holds(CARRIED) is None
    assert mechanism.holds(replace(USED, unit=State(2, "r1"))) is False
    only_used = Mechanism(frozenset(), closed=frozenset(["used"]))
    assert only_used.holds(CARRIED) is None and only_used.holds(USED) is False


@pytest.mark.parametrize("say", [judge, describe, lambda claims, m: m.holds(*claims)])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("usde", "'usde' is not a kind of claim .did you mean 'used'"),
        ("", f"'' is not a kind of claim; choose one of {', '.join(CLAIM_KINDS)}"),
    ],
)
def test_a_misspelt_kind_is_not_silence(say, kind, said):
    misspelt = replace(USED, kind=kind)
    # This also holds if both claims have the same misspelling.
    for true in (frozenset([USED]), frozenset([misspelt])):
        with pytest.raises(InputError, match=said):
            say([misspelt], Mechanism(true))


def test_claims_about_many_units_are_corrected_for_their_number():
    """Labels become units, and an effect that is likely among 64 null neurons is not claimed."""
    rng = np.random.default_rng(0)
    dims = {"layer": [0, 1], "neuron": range(32)}
    null = xr.DataArray(rng.normal(size=(19, 2, 32)), {"draw": range(19), **dims}, ("draw", *dims))
    effect = null.isel(draw=0, drop=True) * 0
    effect.loc[1, 7] = null.max() + 1
    effect.loc[0, 3] = null.sel(layer=0, neuron=3).max() + 0.01  # above its own null only
    told = claimed_units("part", "answer", effect, null.transpose(..., "draw"), Neuron)
    assert told == {Claim("part", "answer", Neuron(1, 7))}
    with pytest.raises(
        InputError,
        match="needs at least 19 draws from the null distribution; `null` contains 18 draws",
    ):
        claimed_units("part", "answer", effect, null.isel(draw=slice(18)), Neuron)


def test_a_claim_names_a_state_by_layer_and_position_or_any_unit():
    assert Claim("used", "e2", 1, "r1") == Claim("used", "e2", State(1, "r1"))
    assert Claim("factors", "e2").unit == WholeModel()
    with pytest.raises(InputError, match="a layer and a position"):
        Claim("used", "e2", 1)
    with pytest.raises(InputError, match="omit the position"):
        Claim("part", "answer", Head(0, 1), "r1")


def test_claims_are_ordered_written_and_read_back():
    claims = [
        Claim("factors", "e2"),
        Claim("moves", "e2", Head(2, 1)),
        Claim("stores", str(Fact(3, 1)), Neuron(0, 17)),
        Claim("used", "e2", 1, "e1"),
        Claim("used", "e2", 1, "r1"),
    ]
    assert sorted(claims[::-1]) == claims
    assert [claim_from_json(json.loads(json.dumps(c.to_json()))) for c in claims] == claims
    assert list(map(str, claims)) == [
        "e2 factors",
        "a2.h1 moves: e2",
        "m0.n17 stores: fact (3, 1)",
        "e2 used at layer 1, e1",
        "e2 used at layer 1, r1",
    ]


def test_models_of_unknown_components_leave_them_open():
    unknown = Mechanism(frozenset([USED]), closed=STATE_KINDS)
    assert unknown.holds(Claim("part", "answer", Head(0, 1))) is None
    assert unknown.holds(CARRIED) is False


def test_who_makes_no_claims_is_not_run_and_not_called_silent(tmp_path):
    class Numbers(Instrument):
        name, definition, outputs = "numbers", "For tests.", {}

        def examples(self, model, dataset):
            raise AssertionError("it was run")

        def measure(self, model, params, inputs, key):
            raise AssertionError("it was run")

    empty = Mechanism(frozenset())
    models = [KnownModel(name, random_checkpoints(1), empty) for name in ("composer", "memoriser")]
    found = score([Numbers()], cache=tmp_path, models=models, save=tmp_path, progress=False)
    assert found.verdicts() == {"numbers": dict.fromkeys(["composer", "memoriser"], NO_CLAIMS)}
    text = (tmp_path / "scores.md").read_text()
    assert "Not run, because they make no claims: numbers." in found.summary()
    assert "| composer | makes no claims |" in text
    assert "| numbers |" not in found.summary() and "## numbers" not in text
    kept = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [row["verdict"] for row in kept] == [NO_CLAIMS] * 2
