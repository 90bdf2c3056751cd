"""Claims are of the kinds that there are; who claims nothing is shown as that, and not run."""

import json
from dataclasses import replace

import pytest

from implicit_reasoning.analysis.claims import KINDS, Claim, Mechanism, describe, judge
from implicit_reasoning.analysis.instrument import Instrument
from implicit_reasoning.analysis.truth.known import Known
from implicit_reasoning.analysis.truth.score import NO_CLAIMS, score
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.units import State
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
        ("usde", "no kind of claim 'usde' - did you mean 'used'"),
        ("", f"no kind of claim ''; the kinds are {', '.join(KINDS)}"),
    ],
)
def test_a_misspelt_kind_is_not_silence(say, kind, said):
    misspelt = replace(USED, kind=kind)
    # Not even where it was misspelt in both places.
    for true in (frozenset([USED]), frozenset([misspelt])):
        with pytest.raises(InputError, match=said):
            say([misspelt], Mechanism(true))


def test_who_makes_no_claims_is_not_run_and_not_called_silent(tmp_path):
    class Numbers(Instrument):
        name, definition, outputs = "numbers", "For tests.", {}

        def examples(self, model, dataset):
            raise AssertionError("it was run")

        def measure(self, model, params, inputs, key):
            raise AssertionError("it was run")

    empty = Mechanism(frozenset())
    models = [Known(name, random_checkpoints(1), empty) for name in ("composer", "memoriser")]
    found = score([Numbers()], cache=tmp_path, models=models, save=tmp_path, progress=False)
    assert found.verdicts() == {"numbers": dict.fromkeys(["composer", "memoriser"], NO_CLAIMS)}
    text = (tmp_path / "scores.md").read_text()
    assert "Not run, because nothing is claimed: numbers." in found.summary()
    assert "| composer | makes no claims |" in text
    assert "| numbers |" not in found.summary() and "## numbers" not in text
    kept = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [row["verdict"] for row in kept] == [NO_CLAIMS] * 2
