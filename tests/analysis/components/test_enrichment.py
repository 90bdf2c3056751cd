"""Tails are decodable at e1 where a table writes them there, and not if the table is off."""

import numpy as np
import pytest

from implicit_reasoning.analysis.components.enrichment import Enrichment
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.analysis.subject import InMemory
from implicit_reasoning.analysis.truth.known import knowledge, small_world
from implicit_reasoning.model.planted.draft import Draft
from implicit_reasoning.model.planted.weights import build


@pytest.fixture(scope="module")
def dataset():
    return small_world(n_entities=12, n_relations=4, out_degree=3, phi=1.5)


def planted(dataset, *, translated):
    """Return a model whose block 1 writes the tails of e1 at e1, and looks up e2 at r1.

    Block 0 translates e1 at e1 into another code. Block 2 looks up the answer at r2. The table of
    tails is not read.

    Args:
      dataset: the dataset.
      translated: whether the look-up of e2 reads the code that block 0 writes, or the embedding.
    """
    known = knowledge(dataset, dataset.splits)
    (head, relation, tail), entity = known.facts, np.arange(known.n_entities)
    draft = Draft(known.n_entities, known.n_relations, depth=3)
    for number in entity:
        own = np.unique(tail[head == number])
        draft.table(1, "e1", [draft.entity[[number]]], [draft.output[[one]] for one in own])
    code, copied, arrived = (draft.space(known.n_entities) for _ in range(3))
    draft.table(0, "e1", [draft.entity[entity]], [code[entity]])
    draft.move(1, "e1", "r1", code if translated else draft.entity, copied, "e1")
    draft.table(1, "r1", [copied[head], draft.relation[relation]], [draft.output[tail]])
    draft.move(2, "r1", "r2", draft.output, arrived, "e2")
    draft.table(2, "r2", [arrived[head], draft.relation[relation]], [draft.output[tail]])
    return build(draft, None)


@pytest.fixture(scope="module")
def results(dataset):
    """Measure a model that does not read what the MLPs write at e1, and one that does."""
    (model, direct), (other, translated) = (planted(dataset, translated=t) for t in (False, True))
    assert model.spec == other.spec
    return measure(Enrichment(), InMemory(model, dataset, [direct, translated]), progress=False)


@pytest.fixture(scope="module")
def result(results):
    return results.isel(step=[0])


def test_tails_are_decodable_after_the_table_that_writes_them(result):
    own = result.attributes.sel(whose="own").isel(step=0, group=0)
    for off in ("MLPs", "attention"):
        assert (own.sel(off=off, n_off=[0, 1], layer=[2, 3]) == 1).all()
        assert (own.sel(off=off, layer=[0, 1]) < 0.7).all()
    assert (own.sel(off="MLPs", n_off=[2, 3]) < 0.7).all()
    assert (own.sel(off="attention", n_off=[2, 3], layer=[2, 3]) == 1).all()
    other = result.attributes.sel(whose="another's").isel(step=0, group=0)
    assert (other < 0.7).all()


def test_answers_do_not_need_what_no_block_reads(result):
    assert (result.chain_right == 1).all() and (result.fact_right == 1).all()


def test_answers_that_need_the_first_mlp_at_e1_fall_when_it_is_off(results):
    one = results.isel(step=1)
    for name in ("fact_right", "chain_right"):
        of = one[name]
        assert (of.sel(n_off=0) == 1).all() and (of.sel(off="attention") == 1).all()
        assert (of.sel(off="MLPs", n_off=[1, 2, 3]) < 0.2).all()


def test_what_is_off_does_not_depend_on_e1(dataset):
    """Its mean has the same weight for each entity."""
    inputs = Enrichment().examples(measured_model(dataset), dataset).inputs
    e1, weight = inputs["tokens"][:, 0], inputs["weight"]
    by_entity = np.bincount(e1, weight, minlength=12)
    np.testing.assert_allclose(by_entity[np.unique(e1)], 1 / len(np.unique(e1)), atol=1e-6)


def measured_model(dataset):
    known = knowledge(dataset, dataset.splits)
    draft = Draft(known.n_entities, known.n_relations, depth=1)
    entity = np.arange(known.n_entities)
    draft.move(0, "e1", "r1", draft.entity, draft.space(known.n_entities), "e1")
    draft.table(0, "e1", [draft.entity[entity]], [draft.output[entity]])
    return build(draft, None)[0]


@pytest.mark.slow
def test_figures_are_drawn_with_their_nulls(result):
    figures = Enrichment().figures(result)
    assert [one.name for one in figures] == ["enrichment", "enrichment_answers"]
    assert all("null" in one.caption for one in figures)


def test_prompts_that_do_not_begin_with_e1_are_refused(dataset):
    other = small_world(n_entities=12, n_relations=4, out_degree=3, phi=1.5, order="r r e")
    with pytest.raises(NotApplicable, match="begin with e1"):
        Enrichment().examples(measured_model(dataset), other)
