"""Answers with a chain of thought contain the bridge entities; nothing else changes."""

import numpy as np
import pytest

from implicit_reasoning.analysis import NotApplicable
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.config import load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import build
from implicit_reasoning.worlds.dataset import columns
from tests.training.tiny import tiny

PLAIN = {"task__n_entities": 12, "task__n_relations": 4, "task__out_degree": 3, "task__phi": 1.5}


def pair(**changes):
    """Return the dataset of a task without and with a chain of thought."""
    changes = {**PLAIN, **changes}
    return [build(tiny(**changes, task__chain_of_thought=on).task) for on in (False, True)]


@pytest.mark.parametrize(("hops", "names", "end"), [(2, 0, False), (3, 0, True), (2, 4, True)])
def test_a_chain_says_its_bridges_before_its_answer(hops, names, end):
    spelt = {"task__hops": hops, "task__names": names, "task__end_token": end}
    plain, spoken = pair(**spelt, task__phi=1.0)
    assert set(spoken.truth) >= set(plain.truth) | {"thought"} and plain.vocab == spoken.vocab
    assert spoken.splits == plain.splits and spoken.n_train == plain.n_train
    entities = np.column_stack(columns(plain.truth, "e"))
    n_tokens = 2 if names else 1
    for row in range(len(plain)):
        is_chain = plain.truth[f"fact{hops}"][row] >= 0
        prompt = plain.tokens[row, : plain.truth["position"][row] + 1]
        path = entities[row, 1:] if is_chain else entities[row, 1:2]
        said = [token for entity in path for token in written(entity, names)]
        said += [plain.n_vocab - 1] if end else []
        last = len(prompt) - 1
        whole = [*prompt, *said]
        assert spoken.tokens[row, : len(whole) - 1].tolist() == whole[:-1]
        targets = spoken.targets[row]
        assert targets[last : last + len(said)].tolist() == said
        assert (targets >= 0).sum() == len(said)
        assert spoken.truth["thought"][row] == (n_tokens * (hops - 1) if is_chain else 0)
    for name in plain.truth:
        if not name.startswith(("answer", "position")):
            np.testing.assert_array_equal(plain.truth[name], spoken.truth[name], name)


def written(entity, names):
    """Return the tokens of an entity, as `Spelling.names` describes them."""
    first = entity % names if names else entity
    return [first, names + (first + entity // names) % names] if names else [first]


def test_taught_answers_replace_only_the_last_entity():
    plain, spoken = pair(task__name="scrambled")
    chains = np.flatnonzero(plain.truth["fact2"] >= 0)
    assert (plain.truth["answer"][chains] != plain.truth["e3"][chains]).any()
    np.testing.assert_array_equal(spoken.answers[chains, 0], plain.truth["e2"][chains])
    np.testing.assert_array_equal(spoken.answers[chains, 1], plain.truth["answer"][chains])


def test_instruments_of_chains_refuse_these_answers():
    """The first answer token is the bridge, so "the answer" would mean another variable."""
    plain, spoken = pair()
    need_chains(plain)
    with pytest.raises(NotApplicable, match="begin with the bridge"):
        need_chains(spoken)


def test_conflicting_bridges_cannot_be_said():
    task = load_config("configs/cue_conflict.py:pocket").task
    task.chain_of_thought = True
    with pytest.raises(InputError, match="its chains have two bridges"):
        build(task)


def test_a_task_from_before_the_field_has_no_thought():
    plain, _ = pair()
    task = tiny(**PLAIN).task
    with task.unlocked():
        del task["chain_of_thought"]
    assert build(task).fingerprint() == plain.fingerprint()
