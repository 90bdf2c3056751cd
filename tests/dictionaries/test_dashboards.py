"""Cards of features: planted features get the right label, and meaningless ones get no label."""

import dataclasses
import html
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.dictionaries import dashboards
from implicit_reasoning.dictionaries.dashboards import (
    cards,
    feature_statistics,
    histories,
    make_page,
)
from implicit_reasoning.dictionaries.dashboards.feature_statistics import direct_logits, direct_path
from implicit_reasoning.dictionaries.dashboards.labels import STANDS_FOR
from implicit_reasoning.dictionaries.dashboards.truths import StateTruth
from implicit_reasoning.dictionaries.measure import example_source
from implicit_reasoning.dictionaries.measures.concepts import ConceptStates
from implicit_reasoning.dictionaries.resolved import resolve
from implicit_reasoning.dictionaries.results import open_measured
from implicit_reasoning.dictionaries.store import Dictionaries
from implicit_reasoning.figures import Page
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import build
from tests.analysis.by_hand import composer, dataset
from tests.dictionaries.planted import (
    CONCEPTS,
    STEPS,
    Planted,
    dimensions,
    drawn,
    measured_as,
    untrained,
)
from tests.dictionaries.small import SITE, config
from tests.training.tiny import TINY

BRIDGE = 12  # a bridge with enough facts in both halves


@pytest.fixture(scope="module")
def data():
    # Each bridge has enough facts in both halves, and there are more than the hundred required
    # facts.
    return dataset(n_relations=12, out_degree=12)


@pytest.fixture(scope="module")
def planted(data):
    return Planted(data, *composer(data))


def told_of(data):
    """Return the bridges that have enough states in both halves."""
    concepts = choose_concepts(Planted(data, *composer(data)))
    (one,) = (one for one in concepts if one.name == "e2@r1")
    counts = [np.bincount(one.values[one.second == half], minlength=24) for half in (0, 1)]
    found = np.flatnonzero(np.min(counts, axis=0) >= 2)
    assert len(found) > 12
    return found


def tail_of(data, entity):
    """Return the dimension that indicates at r1 that a fact leads to an entity."""
    return 2 * data.world.n_entities + data.world.n_relations + entity


def all_cards(run, made, result, monkeypatch):
    """Return the cards of all active features, by number of the feature."""
    monkeypatch.setattr(cards, "BEST", 10**6)
    monkeypatch.setattr(cards, "DENSEST", 10**6)
    (shown,) = cards.make_cards(run, made, result)
    return {card.feature: card for group in shown.groups for card in group.cards}


@pytest.fixture(scope="module")
def made(planted):
    return dimensions(planted.model.spec.d_model)


@pytest.fixture(scope="module")
def found(planted, made):
    with pytest.MonkeyPatch.context() as patched:
        result = measured_as(made, CONCEPTS, planted.dataset.world.n_entities)
        return all_cards(planted, made, result, patched)


# Labels ------------------------------------------------------------------------------------------


def test_a_feature_of_a_bridge_is_called_so(data, found):
    for entity in told_of(data):
        card = found[tail_of(data, entity)]
        assert card.label.name == f"e2 @ r1 = <e_{entity}>"
        assert card.label.verdict == STANDS_FOR and not card.label.own_token
        assert card.label.f1 == card.label.precision == card.label.recall == 1
        assert card.label.average_precision == pytest.approx(1)
        assert 0 < card.label.both == card.label.n_active == card.label.n_value
        assert card.label.null == pytest.approx(0.05) and 0 < card.label.chance < 0.6
        assert dict(card.by_position)["r2"] == 0 < dict(card.by_position)["r1"]


def test_a_feature_of_a_token_is_called_so_too(data, found):
    for relation in range(data.world.n_relations):
        label = found[data.world.n_entities + relation].label
        assert label.name in {f"{name} @ {name} = <r_{relation}>" for name in ("r1", "r2")}
        assert label.own_token


def test_examples_are_the_states_where_it_is_active(data, found):
    card = found[tail_of(data, BRIDGE)]
    leading = set(map(tuple, np.argwhere(data.world.tail == BRIDGE).tolist()))
    assert len(card.examples) == feature_statistics.EXAMPLES
    seen = set()
    for one in card.examples:
        (head,) = one.before
        seen.add((head, one.here))
        fact = data.vocab.index(head), data.vocab.index(one.here) - data.world.n_entities
        assert fact in leading
        assert (
            one.true is True and one.value == f"<e_{BRIDGE}>" and one.activation == pytest.approx(1)
        )
    assert len(seen) == feature_statistics.EXAMPLES  # distinct prefixes


def test_where_the_label_is_wrong_the_example_says_what_is_true(data, planted):
    places = example_source(planted, dimensions(8)).split.places
    truth = StateTruth(data, places, choose_concepts(planted))
    number = [one.name for one in truth.concepts].index("e2@r1")
    for state in np.flatnonzero(places.pos == 1)[:20].tolist():
        e2 = data.truth["e2"][places.rows[places.row[state]]]
        assert truth.at(number, int(e2), state) == (True, f"<e_{e2}>")
        assert truth.at(number, int(e2 + 1) % 24, state) == (False, f"<e_{e2}>")
    assert truth.at(number, 0, int(np.flatnonzero(places.pos == 2)[0])) == (None, "")


def choose_concepts(run):
    return ConceptStates.choose(example_source(run, dimensions(8))).concepts


def test_what_it_writes_promotes_its_token(data, found):
    card = found[tail_of(data, BRIDGE)]
    assert card.promoted[0].name == f"<e_{BRIDGE}>"
    assert card.promoted[0].logit == pytest.approx(10)  # the entry of W_U, at an activation of 1
    assert all(token.logit == 0 for token in card.promoted[1:])


def test_history_follows_the_best_feature_of_the_value(data, planted, made, monkeypatch):
    """At step 0 the same direction has another number in one case, and is absent in the other."""
    n, width = data.world.n_entities, made.dictionary.architecture.d_sae
    result = measured_as(made, CONCEPTS, n)
    same, other = told_of(data)[:2]
    own, concept = [tail_of(data, entity) for entity in range(n)], CONCEPTS.index("e2@r1")
    result["best_feature"][0, concept] = [width - 1 - feature for feature in own]
    result["best_feature"][1, concept] = own
    result["best_feature"][1, concept, other] = 0
    result["f1"][0, concept] = np.nan
    result["f1"][0, concept, same] = 0.25
    found = all_cards(planted, made, result, monkeypatch)
    f1, cosine = found[own[same]].history.lines
    assert found[own[same]].history.steps == STEPS
    assert f1.values == (0.25, 0.9) and cosine.values == pytest.approx((1, 1))
    f1, cosine = found[own[other]].history.lines
    assert np.isnan((f1.values[0], cosine.values[0])).all() and cosine.values[1] == 0


def test_precision_and_recall_have_the_right_denominators(found):
    label = next(iter(found.values())).label._replace(both=3, n_active=4, n_value=6)
    assert (label.precision, label.recall) == (0.75, 0.5)
    assert np.isnan(label._replace(both=0, n_active=0).precision)


# Choice of features ------------------------------------------------------------------------------


def test_the_last_checkpoint_and_the_middle_sparsity(run):
    plan = resolve(run, config(sparsities=(2.0, 3.0, 4.0), seeds=2))
    made = Dictionaries(plan.recipe.dictionary.for_inference(), {}, plan.members, config())
    chosen = [made.members[number] for number in made.shown]
    assert [member.site for member in chosen] == [SITE, SITE.replace("0", "1")]
    assert {(m.step, m.sparsity, m.seed) for m in chosen} == {(run.steps[-1], 3.0, 0)}


# Tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_direct_logits_are_what_a_residual_adds_when_the_norm_is_frozen(tied):
    spec = Spec(d_vocab=9, n_ctx=3, n_layers=1, d_model=8, n_heads=1, d_mlp=8, tied=tied)
    model = Transformer(spec)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    norm = params["ln_final"]
    norm["w"], norm["b"] = 1 + jnp.arange(8.0), jnp.arange(8.0)
    rows = jax.random.normal(jax.random.key(1), (4, 8))
    weight = params["embed"]["W_E"].T if tied else params["unembed"]["W_U"]
    expected = ((rows - rows.mean(1, keepdims=True)) * norm["w"][None]) @ weight
    found = jax.jit(direct_logits, static_argnums=0)(model, params, rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_only_what_is_added_to_one_residual_has_tokens(planted):
    model = planted.model
    mlp = tuple(f"blocks.{block}.hook_mlp_out" for block in range(2))
    assert direct_path(model, (SITE,), (10,)) and direct_path(model, mlp, (10,))
    assert not direct_path(model, (SITE,), (0, 10))
    assert not direct_path(model, ("blocks.0.mlp.hook_post",), (10,))
    assert not direct_path(model, model.resid_sites[1:], (10,))


# Pages -------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects the ids, and the tags that were opened and not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("br", "link", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(body):
    tags = Tags()
    tags.feed(body)
    assert not tags.open and len(set(tags.ids)) == len(tags.ids)
    assert not tags.tags & {"script", "img", "iframe", "link"}
    return tags


def test_the_page_has_the_cards(planted, made):
    result = measured_as(made, CONCEPTS, planted.dataset.world.n_entities)
    page = make_page(planted, made, result)
    tags, said = parsed(page.body), html.unescape(re.sub("<[^>]*>", "", page.body))
    assert page.name == "dictionaries_autoencoder" and "of step 10" in page.lead
    assert re.search(r"e2 @ r1 = <e_\d+>", said)
    assert 20 <= sum(name.startswith("s1-") for name in tags.ids) <= 34
    assert "svg" in tags.tags and "promoted" in said and "stands for" in said
    assert make_page(planted, made, result) == page  # the same run gives the same page


def test_names_are_escaped(data, planted, made):
    nasty = "<script>alert('1')</script>&"
    vocab = tuple(nasty if name == "<r_0>" else name for name in data.vocab)
    run = Planted(dataclasses.replace(data, vocab=vocab), planted.model, planted.own)
    result = measured_as(made, CONCEPTS, data.world.n_entities)
    body = make_page(run, made, result).body
    parsed(body)
    assert html.escape(nasty).replace("&#x27;", "&#39;") in body


def test_without_checkpoints_there_is_the_table(data, planted, made):
    class Copied(Planted):
        steps = ()

    run = Copied(data, planted.model, planted.own)
    body = make_page(run, made, measured_as(made)).body
    assert "no longer exist" in body and "<article" not in body
    parsed(body)


@pytest.mark.slow
def test_the_report_reads_the_page_that_was_kept(run, beaten, monkeypatch):
    """The report computes nothing. After new measurements the page has the table and a command."""
    table = open_measured(run, "beaten")
    page = Page("dictionaries_beaten", "title", "lead", "<article></article>")
    monkeypatch.setattr(dashboards, "make_page", lambda *_: page)
    dashboards.write_page(run, beaten, table)
    monkeypatch.setattr(dashboards, "make_page", None)
    monkeypatch.setattr(cards, "make_cards", None)
    assert page in dashboards.pages(run)
    changed = {"beaten": table.assign(l0=table["l0"] + 1)}
    monkeypatch.setattr(dashboards, "open_measured", lambda run, name: changed.get(name))
    [other] = dashboards.pages(run)
    assert other.name == page.name and "<article" not in other.body
    assert "implicit_reasoning dictionaries --workdir=DIR" in other.body
    parsed(other.body)


def at_random(run, architecture, **changes):
    return untrained(run, config(architecture, sparsities=(0.1,), activation_fn="relu", **changes))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["cross_layer", "crosscoder"])
def test_architectures_of_several_sites_or_checkpoints_have_a_page(run, architecture):
    made = at_random(run, architecture)
    page = make_page(run, made, measured_as(made, CONCEPTS, 12))
    body = page.body
    parsed(body)
    assert ("promoted" in body.split('id="s1"')[1]) == (architecture != "crosscoder")
    assert ("decoder norm / largest decoder norm" in body.split('id="s1"')[1]) == (
        architecture == "crosscoder"
    )
    assert ("of all checkpoints" in page.lead) == (architecture == "crosscoder")


@pytest.mark.slow
def test_tasks_without_chains_have_a_page():
    sizes = {key: value for key, value in TINY.items() if key.startswith("model.")}
    sizes |= {"task.n_train": 100, "task.probes": 20}
    task = apply_overrides(load_config("configs/in_context.py:pocket"), sizes)
    data = build(task.task)
    model = Transformer(
        Spec.from_config(task.model.to_dict(), d_vocab=data.n_vocab, n_ctx=data.n_ctx)
    )
    run = Planted(data, model, drawn(jax.eval_shape(model.init, jax.random.key(0))))
    made = at_random(run, "autoencoder")
    page = make_page(run, made, measured_as(made))
    parsed(page.body)
    assert "no truth variables" in page.body and "Drawn at random" in page.body
    assert "weakly" not in page.body and "cosine of the nearest feature" in page.body


def test_a_history_needs_two_checkpoints(made):
    one = Dictionaries(
        made.dictionary,
        jax.tree.map(lambda leaf: leaf[1:], made.params),
        made.members[1:],
        made.config,
    )
    assert histories.Histories(one, 0, measured_as(one)).of(0, None, "") is None
