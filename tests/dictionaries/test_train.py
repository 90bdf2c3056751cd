"""A set of dictionaries of a run is trained, resumed bit for bit, saved, opened and measured."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from markupsafe import escape

from implicit_reasoning.__main__ import main
from implicit_reasoning.dictionaries import (
    api,
    load,
    measure_dictionaries,
    names,
    train_dictionaries,
)
from implicit_reasoning.dictionaries import measure as measure_module
from implicit_reasoning.dictionaries import train as train_module
from implicit_reasoning.dictionaries.activations import ACTIVATIONS
from implicit_reasoning.dictionaries.api import choose_instruments
from implicit_reasoning.dictionaries.resolved import resolve
from implicit_reasoning.dictionaries.states import distinct_places, split_states, states
from implicit_reasoning.dictionaries.steps import Pool, TrainingData
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.errors import InputError
from tests.dictionaries.planted import trace_only, untrained
from tests.dictionaries.small import SITE, SMALL, config
from tests.training.stopping import stopped_after

READ, WRITTEN = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"


def same(one, other):
    for name in one.params:
        np.testing.assert_array_equal(one.params[name], other.params[name])


def test_every_site_sparsity_and_checkpoint_has_one(run, made):
    assert len(made) == 2 * 2 * 2
    assert {member.step for member in made.members} == {run.steps[0], run.steps[-1]}
    assert {member.site for member in made.members} == {
        f"blocks.{block}.hook_resid_post" for block in range(2)
    }
    assert made.numbers(step=run.steps[-1], sparsity=2.0) and not made.numbers(sparsity=9.0)


def test_they_reconstruct_states_in_raw_units(run, made):
    places = distinct_places(run.dataset, np.arange(run.dataset.n_train))
    finished = made.dictionary
    read = jax.jit(partial(states, run.model, places), static_argnums=1)
    used = jax.jit(lambda params, x: (finished(params, x), finished.encode(params, x)))
    for number in made.numbers(sparsity=3.0):
        member, params = made.members[number], made.params_of(number)
        x = read(run.params(member.steps), member.read)
        out, acts = jax.device_get(used(params, x))
        x = np.asarray(x)
        error = ((out - x) ** 2).sum() / ((x - x.mean(0, keepdims=True)) ** 2).sum()
        assert error < 0.9
        assert ((acts > 0).sum(1) <= 3).all()


def test_they_are_opened_as_they_were_kept(run, made):
    assert "autoencoder" in names(run)  # beside sets that other tests trained on this run
    opened = load(run, "autoencoder")
    assert opened.members == made.members and opened.dictionary == made.dictionary
    same(opened, made)
    again = train_dictionaries(run, config())  # no further training
    same(again, made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "stops"),
    [
        ("cold", (1, 1)),
        ("forwards", (1, 5)),
        ("backwards", (4, 1)),
    ],
)
def test_a_stop_does_not_change_the_outcome(run, made, monkeypatch, start, stops):
    """Training stops in the first stage, in the second, and between the two."""
    warm = config(name=f"whole_{start}", start=start)
    whole = made if start == "cold" else train_dictionaries(run, warm)
    asked = config(name=f"stopped_{start}", start=start)
    for after in stops:
        with stopped_after(monkeypatch, train_module, after):
            train_dictionaries(run, asked)
        with pytest.raises(InputError, match="no finished set of dictionaries"):
            load(run, f"stopped_{start}")
    same(train_dictionaries(run, asked), whole)


@pytest.mark.slow
def test_a_warm_start_goes_on_from_the_checkpoint_before(run, made):
    plan = resolve(run, config(start="backwards"))
    assert [stage[0].step for stage in plan.stages] == sorted(
        {member.step for member in plan.members}, reverse=True
    )
    warm = load(run, "whole_backwards") if "whole_backwards" in names(run) else None
    warm = warm or train_dictionaries(run, config(name="whole_backwards", start="backwards"))
    last = max(member.step for member in plan.members)
    for name in ("W_enc", "b_enc"):
        cold, later = (
            {m: np.asarray(d.params[name][n]) for n, m in enumerate(d.members)}
            for d in (made, warm)
        )
        for member in made.members:
            alike = np.array_equal(cold[member], later[member])
            assert alike == (member.step == last), member


ARCHITECTURES = ("transcoder", "skip_transcoder", "cross_layer", "crosscoder")


def of_architecture(architecture, **changes):
    """Return a configuration of one site if possible; other sites would need their own programs."""
    if architecture not in ("cross_layer", "crosscoder"):
        changes |= {"read": (READ,), "write": (WRITTEN,)}
    return config(architecture, activation_fn="relu", sparsities=(0.1,), **changes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_planned_and_measured(run, architecture, monkeypatch):
    """Everything except the numbers is tested, because programs are only traced."""
    found = untrained(run, of_architecture(architecture))
    assert len(found) == 2  # one per checkpoint; for crosscoders, one per site
    trace_only(monkeypatch)
    source = measure_module.example_source(run, found)
    chosen = choose_instruments(source)
    results = measure_module.measure(source, found, chosen, progress=False)
    assert all(result.sizes["member"] == len(found) for result in results)
    named = {one.name for one in chosen}
    assert "concepts" in named
    assert ("answers" in named) == (architecture != "crosscoder")  # it reads several models


# Train two steps for every architecture with its own program: one reads one site and writes
# another, one has several layers, and one has several checkpoints.
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_two_steps(run, architecture):
    short = {"training__steps": 2, "training__warmup_steps": 0, "training__decay_steps": 0}
    asked = of_architecture(
        architecture,
        checkpoints=2 if architecture == "crosscoder" else 1,
        name=f"two_{architecture}",
        **short,
    )
    found = train_dictionaries(run, asked)
    assert all(np.isfinite(value).all() for value in found.params.values())
    assert np.asarray(found.params["b_enc"]).any()  # it is 0 at initialization


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_trained_and_measured(run, architecture):
    found = train_dictionaries(run, of_architecture(architecture))
    first, last = losses(run, found)
    assert (last < first).all()
    result = measure_dictionaries(run, found)
    assert (result["explained_variance"] <= 1).all() and "f1" in result
    last = result["step"] == result["step"].max()  # crosscoders have all steps
    assert result["explained_variance"].sel(member=last).max() > 0
    assert ("ce" in result) == (architecture != "crosscoder")


@pytest.mark.slow
@pytest.mark.parametrize("activation_fn", ["batch_topk", "gated", "jumprelu"])
def test_every_activation_function_is_trained(run, activation_fn):
    sparsity = 2.0 if activation_fn == "batch_topk" else 0.05
    asked = config(
        name=activation_fn, activation_fn=activation_fn, sparsities=(sparsity,), read=(SITE,)
    )
    found = train_dictionaries(run, asked)
    assert found.dictionary.saelens_architecture == {"gated": "gated"}.get(
        activation_fn, "jumprelu"
    )
    first, last = losses(run, found)
    assert (last < first).all()
    assert all(np.isfinite(value).all() for value in found.params.values())


def losses(run, found):
    """Return the recorded squared errors of the first steps and of the last steps."""
    rows = Files.of(run, found.config.name).metrics.read_text(encoding="utf-8").splitlines()
    return [np.array(json.loads(row)["mse"]) for row in (rows[0], rows[-1])]


@pytest.mark.parametrize("activation_fn", ACTIVATIONS)
def test_every_activation_function_is_made_from_its_name_and_steps(run, activation_fn):
    """One step is traced: the state of training keeps its shapes and types."""
    options = {"options__widths": (8, 16)} if activation_fn == "matryoshka" else {}
    recipe = resolve(run, config(activation_fn=activation_fn, **options)).recipe
    assert recipe.dictionary.activation_fn.name == activation_fn
    architecture = recipe.dictionary.architecture
    x = jax.ShapeDtypeStruct((90, architecture.d_in), np.float32)
    of_groups = jax.ShapeDtypeStruct((3,), np.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sparsity = jax.ShapeDtypeStruct((), np.float32)
    lot = TrainingData(Pool(x, x, of_groups, of_groups), sparsity, key)
    state = jax.eval_shape(recipe.begin, lot)
    count = jax.ShapeDtypeStruct((), np.int32)
    after, window = jax.eval_shape(recipe.advance, state, lot, count, count)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert after == state and all(leaf.shape == () for leaf in window)


def test_others_under_the_same_name_are_refused(run, made, monkeypatch):
    with pytest.raises(InputError, match="width is 24 in the folder and 25 in config"):
        train_dictionaries(run, config(width=25))
    monkeypatch.delattr(train_module, "DictionaryTraining")  # training is impossible
    shown = config(progress=True, log_every=3, resume_every=7)  # these fields may differ
    same(train_dictionaries(run, shown), made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"options__mode": "tanh"},
            "activation function 'topk' has no option 'mode'; the options are aux, max_k",
        ),
        ({"activation_fn": "top"}, "unknown activation function 'top'; did you mean 'topk'"),
        ({"architecture": "coder"}, "architecture is 'coder'; it must be one of autoencoder"),
        ({"start": "warm"}, "start is 'warm'; it must be one of 'cold'"),
        ({"steps": (7,)}, "no checkpoint of step 7"),
        ({"read": ("blocks.9.hook_resid_post",)}, "no site 'blocks.9.hook_resid_post'"),
        ({"read": ("blocks.0.attn.hook_pattern",)}, "has the dimensions batch, head"),
        ({"positions": ("r9",)}, "no position 'r9'; the positions are e1"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(run, changes, said):
    with pytest.raises(InputError, match=said):
        train_dictionaries(run, config(name="odd", **changes))


# States ------------------------------------------------------------------------------------------


def test_every_distinct_prefix_counts_once_and_is_on_one_side(run):
    data = run.dataset
    places, trained, held_out = split_states(data)
    prefixes = [
        tuple(places.tokens[row, : pos + 1])
        for row, pos in zip(places.row, places.pos, strict=True)
    ]
    assert len(set(prefixes)) == len(prefixes)
    everything = {
        tuple(tokens[: pos + 1])
        for tokens, end in zip(data.tokens, data.truth["position"], strict=True)
        for pos in range(end + 1)
    }
    assert set(prefixes) == everything
    assert 0.1 < held_out.mean() < 0.3
    side = dict(zip(prefixes, held_out, strict=True))
    for prefix, out in side.items():
        if len(prefix) > 2:  # it is on the same side as its first fact
            assert out == side[prefix[:2]]
    in_training = {
        tuple(tokens[: pos + 1])
        for tokens, end in zip(
            data.tokens[: data.n_train], data.truth["position"][: data.n_train], strict=True
        )
        for pos in range(end + 1)
    }
    for prefix, chosen in zip(prefixes, trained, strict=True):
        assert chosen == (prefix in in_training and not side[prefix])


def test_what_is_measured_on_was_not_trained_on(run, made, monkeypatch):
    """Training and measurement use one split and have no state in common."""
    seen = {}
    for module, name in ((train_module, "trained"), (measure_module, "measured")):

        def noted(*args, name=name):
            seen[name] = split_states(*args)
            return seen[name]

        monkeypatch.setattr(module, "split_states", noted)
    train_module.make_material(run, resolve(run, made.config), made.members)
    source = measure_module.example_source(run, made)
    for one, other in zip(seen["trained"].places, seen["measured"].places, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (seen["trained"].trained & source.split.held_out).any()


def test_states_are_those_of_the_model(run):
    data, model = run.dataset, run.model
    places = distinct_places(data, np.arange(50), ("r1",))
    assert set(places.pos) == {1}
    params = run.params(run.steps[-2:])
    sites = ("blocks.1.hook_resid_post", "blocks.0.hook_mlp_out")
    found = jax.jit(partial(states, model, places), static_argnums=1)(params, sites)
    whole = jax.jit(lambda one: model.forward(one, places.tokens, sites=sites)[1])
    parts = []
    for number in range(2):  # by checkpoint, then by site
        one = jax.device_get(whole(jax.tree.map(lambda leaf, n=number: leaf[n], params)))
        parts += [one[site][places.row, 1] for site in sites]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), atol=1e-5)


# Measurement -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_measured_is_labelled_and_kept(run, beaten, monkeypatch):
    result = measure_dictionaries(run, beaten)
    own = result.sel(member=(result["what"] == "trained").values)
    assert own.sizes["member"] == len(beaten) < result.sizes["member"]
    assert str(result["split"].values[0]).startswith("train")
    clean, spliced = (own["kl"].sel(model=name) for name in ("clean", "spliced"))
    assert (clean == 0).all() and (spliced > 0).all()
    assert own["l0"].max() <= 3 and (own["explained_variance"] <= 1).all()
    assert {"e1@r1", "e2@r1", "e2@r2", "fact1@r2"} <= set(result["concept"].values)
    assert "e1@e1" not in result["concept"].values  # one state for each value
    monkeypatch.delattr(api, "measure")  # measuring again would fail
    np.testing.assert_array_equal(result["f1"], measure_dictionaries(run, beaten)["f1"])


@pytest.mark.slow
def test_baselines_are_measured_like_what_is_to_beat_them(run):
    made = train_dictionaries(run, config(name="held", read=(SITE,), baselines=True))
    result = measure_dictionaries(run, made)
    assert {"k-means", "linear", "neurons", "class means"} < set(result["what"].values)
    assert (result["kl"].sel(model="spliced") > 0).all() and (result["l0"] > 0).all()


@pytest.mark.slow
def test_the_command_trains_measures_and_writes_the_page(
    run, beaten, capsys, monkeypatch, blank_figures
):
    trace_only(monkeypatch)  # the test above checks the numbers
    flags = [f"--config.{name}={_text(value)}" for name, value in SMALL.items()]
    flags += ["--config.name=said", f"--config.read={SITE}"]
    assert main(["dictionaries", f"--workdir={run.files.workdir}", *flags]) == 0
    assert "4 dictionaries" in capsys.readouterr().out
    page = run.files.report.read_text(encoding="utf-8")
    assert "Reconstruction and sparsity" in page
    for title in (
        "Dictionaries and baselines",
        "Do features represent entities and relations?",
        "Are the features of bridges split, absorbed, or active out of distribution?",
        "Do answers follow the features of bridges?",
        "When features appear, and whether they persist",
        "Are there more directions than dimensions?",
    ):
        assert str(escape(title)) in page


def test_the_command_opens_a_finished_set_and_hands_it_on(run, made, capsys, monkeypatch):
    """Measuring and drawing take long, so they are only called here."""
    called = []

    def called_with(result):
        return lambda *given, **_: called.append(given) or result

    monkeypatch.setattr("implicit_reasoning.dictionaries.measure_dictionaries", called_with("all"))
    monkeypatch.setattr("implicit_reasoning.dictionaries.dashboards.write_page", called_with(None))
    monkeypatch.setattr("implicit_reasoning.report.write_report", called_with("page.html"))
    flags = [f"--config.{name}={_text(value)}" for name, value in SMALL.items()]
    assert main(["dictionaries", f"--workdir={run.files.workdir}", *flags]) == 0
    assert capsys.readouterr().out == f"{len(made)} dictionaries\nreport: page.html\n"
    measured, written, _ = called
    assert written[2] == "all"
    same(measured[1], made)
    same(written[1], made)


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
