"""Models of known mechanism give the expected answers, and their claims are possible."""

import shutil
from typing import Any

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.truth import known
from implicit_reasoning.config import apply_overrides
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.planted import MECHANISMS
from implicit_reasoning.runs import Run
from tests.training.tiny import tiny

SMALL = {"n_entities": 12, "n_relations": 4, "out_degree": 3, "phi": 1.0}


@pytest.fixture(scope="module", autouse=True)
def small_world():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setitem(known._WORLD, name, value)
        patch.setattr(known, "_SCORED", {})
        yield


def answered(subject):
    """Return whether each row of the dataset is answered correctly: bool [row]."""
    logits, _ = jax.jit(subject.model.forward)(subject.checkpoints[0], subject.dataset.tokens)
    position, answer = subject.dataset.truth["position"], subject.dataset.truth["answer"]
    return np.asarray(logits)[np.arange(len(answer)), position].argmax(-1) == answer


# By default, one that answers everything and two that do not. tests/model/test_planted.py asks all
# of them about the facts and chains that they know.
@pytest.mark.parametrize(
    ("seed", "names"),
    [
        (None, ("composer", "prefix_memoriser", "cluster_composer")),
        *(pytest.param(seed, tuple(MECHANISMS), marks=pytest.mark.slow) for seed in (None, 4)),
    ],
)
def test_planted_ones_answer_what_they_know(seed, names, monkeypatch):
    monkeypatch.setattr(known, "MECHANISMS", {name: MECHANISMS[name] for name in names})
    found = known.planted_models(seed)
    end = "" if seed is None else f"_{seed}"
    assert [model.name for model in found] == [f"{name}{end}" for name in names]
    for model in found:
        right, dataset = answered(model.subject), model.subject.dataset
        assert right[: dataset.n_train].all()
        if model.name.startswith("prefix"):
            assert right[dataset.n_train :].mean() < 0.2
        elif model.name.startswith("cluster"):
            assert right[dataset.rows("test_oi")].mean() < 0.2
        else:
            assert right.all()


def test_seeds_have_worlds_of_their_own(monkeypatch):
    monkeypatch.setattr(known, "MECHANISMS", {"composer": MECHANISMS["composer"]})
    one, other = (known.planted_models(seed)[0].subject.dataset for seed in (4, 5))
    assert one.fingerprint() != other.fingerprint()


def test_a_subject_of_one_checkpoint_gives_it_as_often_as_asked():
    subject: Any = known.untrained_model().subject
    tokens = subject.params((0, 0, 0))["embed"]["W_E"]
    assert tokens.shape == (3, subject.model.spec.d_vocab, subject.model.spec.d_model)
    np.testing.assert_array_equal(tokens[2], subject.checkpoints[0]["embed"]["W_E"])


def test_of_an_untrained_model_nothing_but_tokens_is_true():
    model = known.untrained_model()
    assert answered(model.subject).mean() < 0.4
    holds = model.mechanism.holds
    assert holds(Claim("decodable", "r1", 2, "r1")) is True
    assert holds(Claim("decodable", "e1", 1, "r1")) is None
    assert holds(Claim("decodable", "e1", 0, "r1")) is False
    assert holds(Claim("carried", "e1", 1, "e1")) is None
    assert holds(Claim("carried", "e1", 2, "e1")) is False  # nothing reads this state
    for kind in ("decodable", "carried", "used", "unused"):
        assert holds(Claim(kind, "e2", 1, "r1")) is False
    for kind in ("factors", "grounded", "memorised", "stored_once", "stored_twice"):
        assert holds(Claim(kind, "e2")) is False


def test_scrambled_has_a_bridge_that_is_taught_and_never_used():
    holds = known.scrambled_mechanism(2).holds
    assert holds(Claim("decodable", "e2", 2, "r1")) and holds(Claim("unused", "e2", 2, "r1"))
    assert holds(Claim("decodable", "e2", 1, "r1")) is None
    assert holds(Claim("used", "e2", 1, "r1")) is False
    assert holds(Claim("memorised", "e2"))
    assert holds(Claim("factors", "e2")) is False and holds(Claim("grounded", "e2")) is False


def test_shadow_has_a_decoy_that_is_taught_and_never_used():
    holds = known.shadow_mechanism(2).holds
    assert holds(Claim("decodable", "decoy", 2, "r1")) and holds(Claim("unused", "decoy", 2, "r1"))
    assert holds(Claim("used", "decoy", 1, "r1")) is False
    assert holds(Claim("carried", "decoy", 1, "r1")) is False
    assert holds(Claim("used", "e2", 1, "r1")) is None
    assert holds(Claim("factors", "e2")) is None and holds(Claim("factors", "decoy")) is False
    assert holds(Claim("grounded", "e2")) is False and holds(Claim("grounded", "decoy")) is False


@pytest.mark.parametrize("mechanism", [known.scrambled_mechanism, known.shadow_mechanism])
def test_no_state_knows_what_was_not_read_yet(mechanism):
    made = mechanism(3)
    assert not made.true & made.open
    holds = made.holds
    for name in ("e2", "answer", "r1"):
        assert holds(Claim("decodable", name, 3, "e1")) is False
    assert holds(Claim("decodable", "answer", 2, "r1")) is False
    assert holds(Claim("decodable", "e1", 0, "r2")) is False
    # Nothing reads the last state at r1.
    assert holds(Claim("carried", "e1", 3, "r1")) is False
    assert holds(Claim("carried", "e1", 3, "r2")) is True


def config(name, **changes):
    return tiny(task__name=name, steps=20, evaluation__every=20, **changes)


@pytest.mark.slow
def test_a_model_is_trained_once_and_goes_on_if_it_was_cut_short(tmp_path, monkeypatch):
    # This is the task that other tests train on, so its programs are already compiled.
    asked = tiny(steps=20, checkpoints__every=10)
    made = known.trained_model("scrambled", asked, tmp_path)
    assert made.mechanism == known.scrambled_mechanism(2)
    assert isinstance(made.subject, Run) and made.subject.steps[-1] == 20

    calls = []
    monkeypatch.setattr(known, "train", lambda *given: calls.append(given) or made.subject)
    again = known.trained_model("scrambled", asked, tmp_path)
    assert again.subject.steps == made.subject.steps and not calls
    with pytest.raises(InputError, match="contains a run with a different configuration"):
        known.trained_model("scrambled", apply_overrides(asked, {"seed": 1}), tmp_path)

    shutil.rmtree(made.subject.files.checkpoints / "20")
    known.trained_model("scrambled", asked, tmp_path)
    assert calls == [(asked, tmp_path / "scrambled")]


@pytest.mark.slow
def test_all_of_them(tmp_path):
    configs = {name: config(name) for name in known.TRAINED}
    found = known.known_models(tmp_path, seeds=(4,), configs=configs)
    names = [model.name for model in found]
    planted = [*MECHANISMS, *(f"{name}_4" for name in MECHANISMS)]
    assert names == [*planted, "untrained", "scrambled", "shadow"]
    shadow = found[-1]
    assert shadow.mechanism == known.shadow_mechanism(2)
    assert "decoy" in shadow.subject.dataset.truth


def test_the_trained_ones_have_configurations():
    for name in known.TRAINED:
        assert known.load_config(f"{name}:pocket").task.name == name


def test_knowledge_is_of_the_splits_asked_for():
    dataset = known.small_world(world_seed=1)
    taught = known.knowledge(dataset, ["train_ii"])
    assert len(taught.chains) == len(dataset.rows("train_ii"))
    e1, r1, e2, r2, e3 = taught.chains.T
    np.testing.assert_array_equal(dataset.world.tail[e1, r1], e2)
    np.testing.assert_array_equal(dataset.world.tail[e2, r2], e3)
