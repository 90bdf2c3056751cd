"""Cards of features: planted ones get the right label, and what means nothing gets none."""

import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.dictionaries.dashboards import cards, histories, looking, make_page, truths
from implicit_reasoning.dictionaries.dashboards.labels import (
    CHANCE,
    NOTHING,
    STANDS_FOR,
    both_by_chance,
    label_features,
)
from implicit_reasoning.dictionaries.dashboards.looking import (
    direct_logits,
    direct_path,
    match_features,
)
from implicit_reasoning.dictionaries.dashboards.table import make_rows
from implicit_reasoning.dictionaries.dashboards.truths import OTHER, Truth, choose_truth
from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.kinds import Autoencoder
from implicit_reasoning.dictionaries.measure import ask
from implicit_reasoning.dictionaries.measures.concepts import FACT
from implicit_reasoning.dictionaries.measures.matching import Half
from implicit_reasoning.dictionaries.plan import make_plan
from implicit_reasoning.dictionaries.store import Dictionaries, Member
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.worlds import build
from tests.analysis.by_hand import composer, dataset
from tests.dictionaries.small import config
from tests.training.tiny import TINY

SITE = "blocks.0.hook_resid_post"
STEPS = (0, 10)
BRIDGE = 12  # a bridge with facts enough in both halves


class Planted(Run):
    """A run in memory, the same parameters at every checkpoint."""

    def __init__(self, data, model, params):
        self.files = Layout(Path("nowhere"))
        self.__dict__ |= {"dataset": data, "model": model}
        self.own = params

    steps = STEPS

    def params(self, steps=None):
        steps = self.steps if steps is None else steps
        return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * len(steps)), self.own)


@pytest.fixture(scope="module")
def data():
    # Facts enough of each bridge in both halves, and more than the hundred that are asked for.
    return dataset(n_relations=12, out_degree=12)


@pytest.fixture(scope="module")
def planted(data):
    return Planted(data, *composer(data))


def dimensions(width, threshold=0.0):
    """Features are the dimensions of the state; at step 0 in the opposite order."""
    eye = np.eye(width, dtype=np.float32)
    params = {
        "W_enc": np.stack([eye[:, ::-1], eye]),
        "W_dec": np.stack([eye[::-1], eye]),
        "b_enc": np.full((2, width), -threshold, np.float32),
        "b_dec": np.zeros((2, width), np.float32),
    }
    members = tuple(Member((step,), (SITE,), (SITE,), 2.0, 0) for step in STEPS)
    finished = Finished(Autoencoder(width, width, width), "standard")
    return Dictionaries(finished, jax.tree.map(jnp.asarray, params), members, config())


def measured_as(made, concepts=(), n_values=1, **more):
    """The least that a page needs of what was measured."""
    n, width = len(made), made.finished.kind.d_sae
    members = {
        name: ("member", [getattr(member, name) for member in made.members])
        for name in ("step", "site", "sparsity", "seed")
    }
    numbers = ("l0", "explained_variance", "dead", "dense")
    variables = {name: ("member", np.full(n, 0.5)) for name in numbers}
    variables["density"] = ("member", "feature"), np.full((n, width), 0.1)
    coords = {**members, "what": ("member", ["trained"] * n)}
    if concepts:
        shape = n, len(concepts), n_values
        coords["concept"] = list(concepts)
        dims = "member", "concept", "value"
        variables["f1"] = dims, np.full(shape, 0.9)
        variables["best_feature"] = dims, np.zeros(shape, int)
        for name in ("f1_null", "average_precision_null"):
            variables[name] = (*dims[:2], "draw"), np.full((*shape[:2], 2), 0.05)
    return xr.Dataset(variables | more, coords)


CONCEPTS = ["e1@r1", "e1@r2", "r1@r1", "r1@r2", "e2@r1", "e2@r2", "r2@r2", "answer@r2", "fact1@r2"]


def told_of(data):
    """Bridges that have states enough in both halves."""
    concepts = choose_concepts(Planted(data, *composer(data)))
    (one,) = (one for one in concepts if one.name == "e2@r1")
    counts = [np.bincount(one.values[one.second == half], minlength=24) for half in (0, 1)]
    found = np.flatnonzero(np.min(counts, axis=0) >= 2)
    assert len(found) > 12
    return found


def tail_of(data, entity):
    """The dimension that says, at r1, that a fact leads to an entity."""
    return 2 * data.world.n_entities + data.world.n_relations + entity


def all_cards(run, made, result, monkeypatch):
    """Of every feature that is active, by number."""
    monkeypatch.setattr(cards, "BEST", 10**6)
    monkeypatch.setattr(cards, "DENSEST", 10**6)
    (shown,) = cards.show(run, made, result)
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
    assert len(card.examples) == looking.EXAMPLES
    seen = set()
    for one in card.examples:
        (head,) = one.before
        seen.add((head, one.here))
        fact = data.vocab.index(head), data.vocab.index(one.here) - data.world.n_entities
        assert fact in leading
        assert (
            one.true is True and one.value == f"<e_{BRIDGE}>" and one.activation == pytest.approx(1)
        )
    assert len(seen) == looking.EXAMPLES  # distinct prefixes


def test_where_the_label_is_wrong_the_example_says_what_is_true(data, planted):
    truth = Truth(data, ask(planted, dimensions(8)).split.places, choose_concepts(planted))
    number = [one.name for one in truth.concepts].index("e2@r1")
    places = ask(planted, dimensions(8)).split.places
    for state in np.flatnonzero(places.pos == 1)[:20].tolist():
        e2 = data.truth["e2"][places.rows[places.row[state]]]
        assert truth.at(number, int(e2), state) == (True, f"<e_{e2}>")
        assert truth.at(number, int(e2 + 1) % 24, state) == (False, f"<e_{e2}>")
    assert truth.at(number, 0, int(np.flatnonzero(places.pos == 2)[0])) == (None, "")


def choose_concepts(run):
    return [one for group in choose_truth(ask(run, dimensions(8))) for one in group.concepts]


def test_what_it_writes_promotes_its_token(data, found):
    card = found[tail_of(data, BRIDGE)]
    assert card.promoted[0].name == f"<e_{BRIDGE}>"
    assert card.promoted[0].logit == pytest.approx(10)  # W_U's, at an activation of 1
    assert all(token.logit == 0 for token in card.promoted[1:])


def test_history_follows_the_best_feature_of_the_value(data, planted, made, monkeypatch):
    """The same direction under another number at step 0, and then one that is not the same."""
    n, width = data.world.n_entities, made.finished.kind.d_sae
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


def halves(n_states=4000, n_values=20, n_features=40, density=0.03, seed=0):
    """Values, and features that have nothing to do with them."""
    random = np.random.default_rng(seed)
    values = random.integers(0, n_values, n_states)
    acts = random.random((n_states, n_features)) * (random.random((n_states, 1)) < 2)
    acts *= random.random((n_states, n_features)) < density
    return acts.astype(np.float32), values, np.arange(n_states) % 2 == 1


match_compiled = jax.jit(match_features, static_argnums=2)


def matched(acts, values, second, n_values=20, share=None):
    share = jnp.ones(acts.shape[1]) if share is None else jnp.asarray(share, jnp.float32)
    parts = [Half(jnp.asarray(acts[of]), jnp.asarray(values[of])) for of in (~second, second)]
    found = jax.device_get(match_compiled(*parts, n_values, share))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], found)


def test_scores_are_those_by_hand():
    acts, values, second = halves(300, 6, 10, 0.3)
    found, active = matched(acts, values, second, 6), acts > 0
    for feature in range(10):
        f1 = [
            2 * (active[~second, feature] & (values[~second] == v)).sum()
            / (active[~second, feature].sum() + (values[~second] == v).sum())
            for v in range(6)
        ]  # fmt: skip
        value = int(np.argmax(f1))
        assert found.value[0, feature, 0] == value
        on, of = active[second, feature], values[second] == value
        assert found.both[0, feature, 0] == (on & of).sum()
        assert found.n_active[0, feature] == on.sum() and found.n_value[0, feature, 0] == of.sum()
        np.testing.assert_allclose(found.chosen[0, feature, 0], f1[value], rtol=1e-6)
        np.testing.assert_allclose(
            found.f1[0, feature, 0], 2 * (on & of).sum() / (on.sum() + of.sum()), rtol=1e-6
        )
    assert found.n_states[0] == second.sum()


def test_features_that_mean_nothing_stand_for_nothing():
    for density in (0.003, 0.03, 0.3):
        matches = matched(*halves(density=density))
        found = label_features(matches, np.array([0.05]))
        assert found.nothing.all() and found.verdict(0) == NOTHING


def test_a_label_that_fails_on_other_facts_stands_for_nothing():
    """The mutation: on the second half the values are others."""
    acts, values, second = halves()
    acts[:, 0] = values == 3
    assert label_features(matched(acts, values, second), np.array([0.05])).stands[0]
    broken = np.where(second, (values + 1) % 20, values)
    assert label_features(matched(acts, broken, second), np.array([0.05])).nothing[0]


def test_precision_and_recall_have_the_right_denominators(found):
    label = next(iter(found.values())).label._replace(both=3, n_active=4, n_value=6)
    assert (label.precision, label.recall) == (0.75, 0.5)
    assert np.isnan(label._replace(both=0, n_active=0).precision)


def test_an_unknown_or_high_null_is_minded():
    acts, values, second = halves()
    acts[:, 0] = values == 3
    matches = matched(acts, values, second)
    assert label_features(matches, np.array([np.nan])).stands[0]
    assert label_features(matches, np.array([1.0])).nothing[0]


def test_chance_is_that_of_values_dealt_out_anew():
    n_states, n_value, n_active = 200, 30, 50
    most = both_by_chance(np.array([n_states]), np.array([30.0]), np.array([50.0]))[0]
    random = np.random.default_rng(0)
    drawn = random.hypergeometric(n_value, n_states - n_value, n_active, 200_000)
    assert (drawn > most).mean() < CHANCE < (drawn > most - 1).mean()


def test_a_label_is_of_where_the_feature_is_active():
    """At r1 it stands for a value, at r2 it is hardly ever active, and then by chance with one."""
    acts, values, second = halves()
    acts[:, 0] = (values == 3) & (np.arange(4000) % 4 < 3)
    rare = np.zeros_like(acts)
    here = np.flatnonzero((values == 5) & ~second)
    rare[here, 0] = 1
    both = [matched(acts, values, second, share=np.full(40, 0.99))]
    both += [matched(rare, values, second, share=np.full(40, 0.01))]

    def label(parts):
        stacked = jax.tree.map(lambda *some: np.concatenate(some), *parts)
        found = label_features(stacked, np.full(2, 0.05))
        return int(found.concept[0, 0]), int(found.value[0, 0]), found.verdict(0)

    assert label(both) == (0, 3, STANDS_FOR)
    both[1] = matched(rare, values, second)  # the mutation: as if it were only there
    assert label(both) == (1, 5, NOTHING)


def test_facts_that_are_not_asked_for_count_as_other_facts(data, planted, monkeypatch):
    """Else a feature of an entity would be that of the only fact of it that is asked for."""
    places = ask(planted, dimensions(8)).split.places
    fact = data.truth[FACT][places.rows[places.row]]
    (widened,) = (one for one in choose_concepts(planted) if one.variable == FACT)
    assert len(widened.chosen) == ((places.pos == 2) & (fact >= 0)).sum()
    assert 0.45 < widened.second[widened.values == OTHER].mean() < 0.55
    truth = Truth(data, places, [widened])
    heads = data.truth["e1"][places.rows[places.row]]
    acts = (heads[:, None] == np.arange(24)[None]).astype(np.float32)

    def best(concept):
        parts = acts[concept.chosen], concept.values, concept.second
        return matched(*parts, n_values=concept.n_values).f1[0, :, 0].mean()

    assert best(widened) < 0.3
    (narrow,) = (one for one in with_few_facts(planted, monkeypatch) if one.variable == FACT)
    assert best(narrow) > 0.45
    head = int(data.world.facts.head[fact[widened.chosen[0]]])
    assert truth.value(0, int(widened.values[0])).startswith(f"<e_{head}> <r_")


def with_few_facts(run, monkeypatch):
    """The mutation."""
    monkeypatch.setattr(truths, "_with_others", lambda concept, *_: concept)
    return choose_concepts(run)


# Which features ----------------------------------------------------------------------------------


def test_no_feature_has_two_cards_and_not_only_the_best_have_one():
    acts, values, second = halves(n_features=60)
    acts[:, :20] = values[:, None] == np.arange(20)[None]
    labelled = label_features(matched(acts, values, second), np.array([0.05]))
    density = (acts > 0).mean(0)
    density[59] = 0
    groups = cards.choose_features(density, labelled)
    assert list(map(len, groups.values())) == [cards.BEST, cards.DENSEST, cards.RANDOM]
    shown = np.concatenate(list(groups.values()))
    assert len(set(shown)) == len(shown) and 59 not in shown
    assert set(range(20)) <= set(groups["Best labels"].tolist())
    assert labelled.nothing[list(groups.values())[-1]].all()
    without = cards.choose_features(density, None)
    assert list(map(len, without.values())) == [cards.DENSEST, cards.RANDOM]


def test_the_last_checkpoint_and_the_middle_sparsity(run):
    plan = make_plan(run, config(sparsities=(2.0, 3.0, 4.0), seeds=2))
    made = Dictionaries(plan.recipe.dictionary.finished(), {}, plan.members, config())
    chosen = [made.members[number] for number in cards.choose_members(made)]
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
    """Tags that were opened and not closed, and ids."""

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
    assert "are not there any more" in body and "<article" not in body
    parsed(body)


def at_random(run, kind, **changes):
    """A set as it would be, of parameters that are drawn."""
    chosen = config(kind, sparsities=(0.1,), variant="relu", **changes)
    plan = make_plan(run, chosen)
    dictionary = plan.recipe.dictionary
    x, y = (jnp.ones((4, width)) for width in (dictionary.kind.d_in, dictionary.kind.d_out))
    zero = jnp.zeros(())
    shapes = jax.eval_shape(
        lambda key: dictionary.finish(dictionary.init(key, x, y), zero, zero), jax.random.key(0)
    )
    params = drawn(shapes, len(plan.members))
    return Dictionaries(dictionary.finished(), params, plan.members, chosen)


def drawn(shapes, *leading):
    """Parameters of these shapes; it takes less time than to compile what makes them."""
    random = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(random.normal(size=(*leading, *leaf.shape)), leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("kind", ["cross_layer", "crosscoder"])
def test_kinds_of_several_sites_or_checkpoints_have_a_page(run, kind):
    made = at_random(run, kind)
    page = make_page(run, made, measured_as(made, CONCEPTS, 12))
    body = page.body
    parsed(body)
    assert ("promoted" in body.split('id="s1"')[1]) == (kind != "crosscoder")
    assert ("norm, of its largest" in body.split('id="s1"')[1]) == (kind == "crosscoder")
    assert ("of all checkpoints" in page.lead) == (kind == "crosscoder")


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


# The table ---------------------------------------------------------------------------------------


def test_the_table_has_the_last_checkpoint_and_all_baselines():
    step = np.array([0, 0, 10, 10, 10, 10])
    site = np.array(["a", "b", "a", "b", "a", "b"])
    coords = {
        "step": ("member", step),
        "site": ("member", site),
        "sparsity": ("member", np.full(6, 2.0)),
        "seed": ("member", np.zeros(6, int)),
        "what": ("member", ["trained"] * 4 + ["k-means"] * 2),
        "split": ["train_ii", "test_ii"],
        "concept": ["e1@r1", "e2@r1"],
        "rule": ["truth", "null"],
        "change": ["swap"],
        "outcome": ["moved"],
    }
    f1 = np.arange(6 * 2 * 3.0).reshape(6, 2, 3)
    f1[:, 1, 2] = np.nan
    split, use = np.arange(12.0).reshape(6, 2), np.arange(12.0).reshape(6, 2, 1, 1)
    dims = ("member", "rule", "change", "outcome")
    variables = {
        "l0": ("member", np.arange(6.0)),
        "ce_loss_score_mean": (("member", "split"), split),
        "f1": (("member", "concept", "value"), f1),
        "f1_null": (("member", "concept", "draw"), f1[..., :2]),
        "use": (dims, use),
        "use_low": (dims, use - 1),
        "use_high": (dims, use + 1),
    }
    rows = make_rows(xr.Dataset(variables, coords))
    assert [(row.site, row.what) for row in rows] == [
        (one, what) for one in "ab" for what in ("trained", "untrained model", "k-means")
    ]
    member = 2
    first = rows[0]
    assert (first.l0, first.recovered, first.swap, first.low) == (member, 4, 4, 3)
    assert first.f1 == f1[member, 1, :2].mean() and first.null == f1[member, 1, 1]
    assert np.isnan(first.kl) and np.isnan(first.explained)  # they do not exist


def test_a_history_needs_two_checkpoints(made):
    one = Dictionaries(
        made.finished,
        jax.tree.map(lambda leaf: leaf[1:], made.params),
        made.members[1:],
        made.config,
    )
    assert histories.Histories(one, 0, measured_as(one)).of(0, None, "") is None
