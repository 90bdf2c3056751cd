"""Scores distinguish right, wrong, silent and inapplicable instruments, and are saved."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim, Mechanism
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.reading.lens import LogitLens
from implicit_reasoning.analysis.subject import InMemory
from implicit_reasoning.analysis.truth import known
from implicit_reasoning.analysis.truth.score import Score, Scores, count_found, score
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.planted import MECHANISMS
from implicit_reasoning.model.units import Head, Neuron
from tests.model.exchange.models import filled

# A tenth of the facts is OOD, so there are fewer OOD states than a claim needs.
SMALL = {"n_entities": 28, "n_relations": 4, "out_degree": 3, "phi": 1.0, "ood_fraction": 0.1}
SCORED = ("composer", "hidden_composer", "memoriser", "parallel", "idle_copy", "prefix_memoriser")
FEW = ("composer", "memoriser", "prefix_memoriser")  # scored by default; each compiles programs
TRUE = Claim("used", "e2", 1, "r1")  # of the composer; false of both memorisers


class Says(Instrument):
    """Makes the given claims, for every model that has enough layers."""

    definition = "For tests."
    outputs = {"layers": ("one",)}

    def __init__(self, name, claims=(), depth=4):
        self.name, self.said, self.depth = name, set(claims), depth

    def examples(self, model, dataset):
        if model.spec.depth != self.depth:
            raise NotApplicable(f"made for {self.depth} layers")
        return Examples(jnp.zeros(1), ("all",), np.zeros(1, int), np.zeros(1, int))

    def coords(self, model, dataset):
        return {"one": ["layers"]}

    def measure(self, model, params, inputs, key):
        return {"layers": inputs + self.depth}

    def claims(self, result):
        assert "step" not in result.dims and result["layers"].item() == self.depth
        return self.said


def models_of(names):
    """Return some planted models and the untrained one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setitem(known._WORLD, name, value)
        patch.setattr(known, "_SCORED", {})
        patch.setattr(known, "MECHANISMS", {name: MECHANISMS[name] for name in names})
        return [*known.planted_models(), known.untrained_model()]


@pytest.fixture(scope="module")
def models():
    return models_of(FEW)


@pytest.fixture(scope="module")
def family():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setitem(known._WORLD, name, value)
        patch.setattr(known, "_SCORED", {})
        return known.planted_models(6)


@pytest.fixture(scope="module")
def scores(models, tmp_path_factory):
    toys = [
        Says("good", {TRUE}),
        Says("bold", {TRUE, Claim("used", "e2", 4, "e1")}),
        Says("vague", {Claim("carried", "answer", 1, "r1")}),
        Says("mute"),
    ]
    return score(toys, cache=tmp_path_factory.mktemp("cache"), models=models, progress=False)


def test_an_instrument_is_right_wrong_silent_or_not_applicable(scores):
    verdicts = scores.verdicts()
    assert verdicts["good"] == {
        "composer": "right",
        "memoriser": "wrong",
        "prefix_memoriser": "wrong",
        "untrained": "not applicable",
    }
    assert verdicts["bold"]["composer"] == "wrong"
    assert verdicts["vague"]["composer"] == "silent"  # an open claim is not scored
    assert set(verdicts["mute"].values()) == {"silent", "not applicable"}


def test_what_was_claimed_is_said_in_words(scores):
    of = {(row.instrument, row.model): row for row in scores.rows}
    words = of["bold", "composer"].claims
    assert words["true"] == ["e2 used at layer 1, r1"]
    assert words["false"] == ["e2 used at layer 4, e1"]
    assert of["vague", "composer"].claims["open"] == ["answer carried at layer 1, r1"]
    assert of["good", "untrained"].why == "made for 4 layers"


def test_true_claims_that_were_not_made_are_counted():
    head, neurons = Head(0, 1), [Neuron(0, index) for index in range(3)]
    stores = [Claim("stores", "fact (0, 0)", neuron) for neuron in neurons]
    mechanism = Mechanism(frozenset({TRUE, Claim("moves", "e1", head), *stores[:2]}))
    made = {TRUE, *stores[1:]}  # one neuron is missed, and one claim is false
    assert count_found(made, mechanism) == {"moves, Head": [0, 1], "stores, Neuron": [1, 2]}
    rows = [
        Score("keys", "one", "wrong", {}, found=count_found(made, mechanism)),
        Score("keys", "other", "silent", {}),
    ]
    text = Scores(tuple(rows)).markdown()
    assert "| model | keys: stores, Neuron |\n| --- | --- |\n| one | 1 of 2 |" in text


def test_scores_are_written_for_people_and_for_programs(scores, tmp_path):
    scores.save(tmp_path / "here")
    text = (tmp_path / "here" / "scores.md").read_text()
    assert text.startswith(scores.summary())
    # The instrument applies to three of four models, and is wrong on all three.
    assert "| bold | 0 | 3 | 0 | 1 | 1 | 5 | 0 |" in text
    assert "| model | good | bold | vague | mute |" in text
    assert "| composer | right | wrong | silent | silent |" in text
    assert "## bold on composer: wrong" in text and "- false: e2 used at layer 4, e1" in text
    assert "made for 4 layers" in text
    kept = json.loads((tmp_path / "here" / "scores.json").read_text())
    assert kept["scores"] == [dataclasses.asdict(row) for row in scores.rows]
    assert "versions" in kept["made_with"]


@pytest.mark.slow
def test_the_lens_is_right_on_all_that_it_can_see(tmp_path):
    found = score(["lens"], cache=tmp_path, models=models_of(SCORED), progress=False)
    verdicts = found.verdicts()["lens"]
    assert verdicts.pop("untrained") == "silent"
    assert set(verdicts.values()) == {"right"} and len(verdicts) == 6
    of = {row.model: row.claims["true"] for row in found.rows}
    at_r1 = [f"e2 decodable at layer {layer}, r1" for layer in range(1, 5)]
    assert set(at_r1) < set(of["composer"])
    # The instrument cannot distinguish a used bridge from an unused one, and makes no such claim.
    assert of["prefix_memoriser"] == of["composer"]
    assert set(of["hidden_composer"]) & set(at_r1) == set(at_r1[-1:])


@pytest.mark.slow
def test_the_lens_is_right_on_the_family(family, tmp_path):
    found = score(["lens"], cache=tmp_path, models=family, progress=False)
    assert set(found.verdicts()["lens"].values()) == {"right"}
    assert len(family) == len(MECHANISMS)


@pytest.mark.slow
def test_a_lens_that_mixes_up_layers_is_found_out(models, tmp_path):
    class Shifted(LogitLens):
        """Reads every layer one too high, and the lowest at the top."""

        name = "shifted"

        def measure(self, model, params, inputs, key):
            found = super().measure(model, params, inputs, key)
            layer = self.outputs["rank"].index("layer")
            return {name: jnp.roll(value, 1, axis=layer) for name, value in found.items()}

    found = score([Shifted()], cache=tmp_path, models=models[:2], progress=False)
    assert set(found.verdicts()["shifted"].values()) == {"wrong"}


def test_a_task_that_an_instrument_is_not_for_stops_no_others(tmp_path):
    """Decoding reads (e1, r1), but prompts may begin with relations (`relations_first`)."""
    dataset = known.small_world(**SMALL, order="r r e")
    shape: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_heads": 1, "d_mlp": 8}
    model = Transformer(Spec(d_vocab=dataset.n_vocab, n_ctx=dataset.n_ctx, **shape))
    subject = InMemory(model, dataset, [filled(model)])
    other = known.KnownModel("relations_first", subject, Mechanism(frozenset()))
    chosen: list[Any] = ["decoding", Says("mute", depth=1)]
    found = score(chosen, cache=tmp_path, models=[other], progress=False)
    verdicts = found.verdicts()
    assert verdicts["decoding"]["relations_first"] == "not applicable"
    assert verdicts["mute"]["relations_first"] == "silent"


def test_models_are_trained_where_none_are_given(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "implicit_reasoning.analysis.truth.score.known_models",
        lambda cache, seeds: asked.append((cache, seeds)) or [],
    )
    assert score([Says("good")], cache=str(tmp_path), seeds=(7,), progress=False).rows == ()
    assert asked == [(tmp_path, (7,))]


def test_two_instruments_cannot_have_one_name(tmp_path):
    with pytest.raises(InputError, match="different names"):
        score([Says("a"), Says("a")], cache=tmp_path, models=[], progress=False)


def test_an_instrument_that_breaks_its_own_declaration_is_no_verdict(models, tmp_path):
    class Liar(Says):
        outputs = {"heads": ("one",)}

    with pytest.raises(InputError, match="declares the outputs"):
        score(
            [Says("good", {TRUE}), Liar("liar")],
            cache=tmp_path,
            models=models[:1],
            save=tmp_path / "out",
            progress=False,
        )
    kept = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert [row["instrument"] for row in kept] == ["good"]  # earlier scores are kept
