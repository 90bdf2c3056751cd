"""Saved results of dictionaries: which are used, which are measured again, which are refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples, NotApplicable
from implicit_reasoning.dictionaries import DictionaryInstrument, api, measure_dictionaries
from implicit_reasoning.dictionaries import measure as measure_module
from implicit_reasoning.dictionaries.instrument import without_examples
from implicit_reasoning.dictionaries.measure import Chosen, example_source
from implicit_reasoning.dictionaries.results import join_instruments, open_measured
from implicit_reasoning.dictionaries.store import Files, Member, save
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import load_arrays, save_arrays
from implicit_reasoning.statistics import ClusterIntervals
from tests.compiled import compiled
from tests.dictionaries.planted import untrained
from tests.dictionaries.small import SITE, config


class Counted(DictionaryInstrument):
    """Replaces the built-in instrument; its values are the number of measurements so far."""

    name = "reconstruction"
    definition = "how often it was measured"
    outputs = {"l0": (), "density": ("feature",)}

    def examples(self, source):
        return without_examples(None)

    def measure(self, subject, shared, encoded, inputs):
        raise AssertionError("its numbers are not computed")


@pytest.fixture
def made(run):
    """Untrained dictionaries of two checkpoints and two sparsities, in their own folder."""
    found = untrained(run, config(name="kept", read=(SITE,)))
    save(Files.of(run, "kept"), found)
    yield found
    shutil.rmtree(Files.of(run, "kept").folder)


@pytest.fixture
def measuring(monkeypatch):
    """Return a list of the steps that each call measured."""
    calls = []

    def measure(source, made, chosen, steps, *, progress):
        calls.append(steps)
        members = [one for one in made.members if one.step in steps]
        return [labelled(members, len(calls)) for _ in chosen]

    monkeypatch.setattr(api, "measure", measure)
    return calls


def labelled(members, value, what="trained"):
    names = ("step", "site", "sparsity", "seed")
    coords = {n: ("member", [getattr(member, n) for member in members]) for n in names}
    coords |= {"what": ("member", [what] * len(members)), "feature": range(24)}
    l0 = np.full(len(members), float(value))
    density = np.full((len(members), 24), 0.5)
    return xr.Dataset({"l0": ("member", l0), "density": (("member", "feature"), density)}, coords)


def only(made, step):
    """Return the dictionaries of one step."""
    numbers = made.numbers(step=step)
    members = tuple(made.members[number] for number in numbers)
    return dataclasses.replace(made, members=members, params=made.params_of(np.array(numbers)))


def by_step(result):
    return {int(s): set(result["l0"].values[result["step"] == s]) for s in result["step"].values}


def test_what_fits_is_not_measured_again(run, made, measuring):
    first, last = run.steps[0], run.steps[-1]
    for _ in range(2):
        result = measure_dictionaries(run, made, [Counted()])
    assert measuring == [(first, last)]
    attrs = load_arrays(Files.of(run, "kept").result("reconstruction")).attrs
    assert attrs["world"] == run.dataset.fingerprint()
    assert attrs["checkpoints"][str(last)] == run.fingerprint(last)
    assert attrs["nulls"] == {"untrained model": {"step": 0}}
    assert [
        tuple(row) for row in zip(result["step"].values, result["sparsity"].values, strict=True)
    ] == [(member.step, member.sparsity) for member in made.members]


def test_only_new_steps_are_measured(run, made, measuring):
    """Earlier measurements stay unchanged."""
    first, last = run.steps[0], run.steps[-1]
    measure_dictionaries(run, only(made, last), [Counted()])
    result = measure_dictionaries(run, made, [Counted()])
    assert measuring == [(last,), (first,)]
    assert by_step(result) == {first: {2}, last: {1}}


def test_dictionaries_of_a_step_that_are_others_now_are_measured_anew(run, made, measuring, capfd):
    first, last = run.steps[0], run.steps[-1]
    loud = dataclasses.replace(made, config=config(name="kept", read=(SITE,), progress=True))
    measure_dictionaries(run, loud, [Counted()])
    b_dec = np.array(made.params["b_dec"])
    b_dec[np.array(made.numbers(step=last))] += 1
    moved = dataclasses.replace(loud, params=made.params | {"b_dec": b_dec})
    assert moved.fingerprint(last) != made.fingerprint(last)
    assert moved.fingerprint(first) == made.fingerprint(first)
    result = measure_dictionaries(run, moved, [Counted()])
    assert measuring[1:] == [(last,)]
    assert by_step(result) == {first: {1}, last: {2}}  # the new value is used
    assert "dictionaries changed after the measurement; measuring again" in capfd.readouterr().err


@pytest.mark.parametrize(
    "other",
    [
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("checkpoints", "intervals")),
        "world",
        "set",
    ],
)
def test_results_of_another_run_are_measured_anew(run, made, measuring, other):
    measure_dictionaries(run, made, [Counted()])
    path = Files.of(run, "kept").result("reconstruction")
    kept = load_arrays(path)
    kept.attrs[other] = {} if other in ("checkpoints", "set") else 0
    save_arrays(path, kept)
    result = measure_dictionaries(run, made, [Counted()])
    assert measuring[1:] == [(run.steps[0], run.steps[-1])] and set(result["l0"].values) == {2}


def test_another_version_or_other_options_are_refused(run, made, measuring):
    measure_dictionaries(run, made, [Counted()])
    newer, sharper = Counted(), Counted()
    newer.version = 2
    sharper.options = lambda: {"power": 2}
    with pytest.raises(InputError, match=r"has version 1, expected 2; rerun with --again"):
        measure_dictionaries(run, made, [newer])
    with pytest.raises(InputError, match="has options"):
        measure_dictionaries(run, made, [sharper])
    assert len(measuring) == 1
    result = measure_dictionaries(run, made, [newer], again=True)
    assert set(result["l0"].values) == {2}


def test_what_an_earlier_version_measured_is_shown_until_it_is_measured(run, made, measuring):
    files = Files.of(run, "kept")
    old = labelled(made.members, 7).assign_attrs(measured_with={"world": "another"})
    save_arrays(files.measured_before, old)
    assert set(open_measured(run, "kept")["l0"].values) == {7}
    assert set(measure_dictionaries(run, made, [Counted()])["l0"].values) == {1}
    assert set(open_measured(run, "kept")["l0"].values) == {1}
    assert set(load_arrays(files.measured_before)["l0"].values) == {7}  # the file is unchanged


# Tables ------------------------------------------------------------------------------------------


def test_a_table_has_members_in_their_order_and_baselines_of_the_last_step():
    members = [Member((step,), ("a",), ("a",), 2.0, seed) for step in (10, 0) for seed in (0, 1)]
    baseline = [Member((step,), ("a",), ("a",), 2.0, 0) for step in (0, 10)]
    parts = [labelled(members[::-1], 1), labelled(baseline, 2, "k-means")]
    parts[0]["l0"] = "member", [member.step + member.seed for member in members[::-1]]
    both = xr.concat(parts, dim="member")
    own = xr.Dataset(
        {"ce": (("member", "group"), np.ones((2, 1)))}, parts[0].isel(member=[3, 2]).coords
    )
    own = own.assign_attrs(group="split").assign_coords(group=["train"])
    table = join_instruments({"reconstruction": both, "answers": own}, members)
    assert table["l0"].values.tolist() == [10, 11, 0, 1, 2]
    assert table["what"].values.tolist() == ["trained"] * 4 + ["k-means"]
    assert table["step"].values[-1] == 10  # the row of step 0 belongs to an earlier last checkpoint
    np.testing.assert_array_equal(table["ce"][:, 0], [1, 1, np.nan, np.nan, np.nan])
    assert table["split"].values.tolist() == ["train"]


# Instruments of the user -------------------------------------------------------------------------

OWN = '''
"""Whether the first feature is active, by token."""
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.dictionaries import DictionaryInstrument


class First(DictionaryInstrument):
    name = "first"
    definition = "how often the first feature is active"
    outputs = {"active": ("what_of", "example"), "size": ("feature",)}
    nulls = {"last feature": {"what_of": "last"}}

    def examples(self, source):
        places = source.split.places
        chosen = np.flatnonzero(source.split.held_out)
        clusters = places.tokens[places.row[chosen], 0]
        group = (places.pos[chosen] > 0).astype(int)
        coords = {"what_of": ["first", "last"]}
        return Examples(chosen, ("e1", "later"), group, clusters, coords=coords)

    def measure(self, subject, shared, encoded, inputs):
        active = (encoded.acts[inputs] > 0).astype(jnp.float32)
        return {"active": active[:, jnp.array([0, -1])].T, "size": encoded.acts.mean(0)}
'''


def test_an_instrument_of_ones_own_is_found_by_its_file(run, made, tmp_path):
    """The user's instrument is measured by the same program, with intervals by its clusters."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    with pytest.raises(InputError, match="has no measured results"):
        measure_dictionaries(
            run, made, [f"{path}:First"]
        )  # the table has only built-in instruments
    result = load_arrays(Files.of(run, "kept").result("first"))
    assert result.attrs["found_at"] == f"{path}:First" and result.sizes["member"] == len(made)
    source = example_source(run, made)
    [chosen] = api.choose_instruments(source, [f"{path}:First"])
    acts = by_hand(run, made, source)
    for number, group in enumerate(chosen.examples.groups):
        rows = chosen.examples.group == number
        active = (acts[:, chosen.examples.inputs[rows]] > 0)[..., [0, -1]].swapaxes(1, 2)
        expected = ClusterIntervals(chosen.examples.clusters[rows]).interval(active.astype(float))
        of = result.sel(group=group)
        np.testing.assert_allclose(of["active"], expected.mean, atol=1e-6)
        np.testing.assert_allclose(of["active_low"], expected.low, atol=1e-6)
        np.testing.assert_allclose(of["active_high"], expected.high, atol=1e-6)
        assert of["n_states"] == len(np.unique(chosen.examples.clusters[rows]))
    np.testing.assert_allclose(result["size"], acts.mean(1), rtol=1e-4, atol=1e-6)


def by_hand(run, made, source):
    """Return the activations of every dictionary, computed one after another: [member, state,
    feature].
    """
    places = source.split.places

    def acts(params, own, site):
        _, seen = run.model.forward(params, places.tokens, sites=(site,))
        return made.dictionary.encode(own, seen[site][places.row, places.pos])

    acts = compiled(acts, 2)
    params = [jax.device_get(run.params(member.steps)) for member in made.members]
    firsts = [jax.tree.map(lambda leaf: leaf[0], one) for one in params]
    return np.stack(
        [
            acts(first, made.params_of(number), member.read[0])
            for number, (first, member) in enumerate(zip(firsts, made.members, strict=True))
        ]
    )


CANDIDATES = 3


def labels_of(instrument, outputs, examples, made):
    source_members = [made.members[0]] * CANDIDATES
    candidates = [
        measure_module.Candidate("trained", member, made.dictionary, {})
        for member in source_members
    ]
    return measure_module._labelled(outputs, Chosen(instrument, examples), candidates, 24)


class Declares(Counted):
    """Has one output by example and one by feature."""

    name = "declares"
    outputs = {"right": ("kind", EXAMPLE), "density": ("feature",)}
    nulls = {"none": {"kind": "null"}}

    def examples(self, source):
        raise NotImplementedError  # the tests make the examples themselves


EXAMPLES = Examples(
    None, ("all",), np.zeros(4, int), np.array([0, 0, 1, 1]), coords={"kind": ["own", "null"]}
)


def found(**changes):
    right = np.zeros((CANDIDATES, 2, 4), np.float32)
    right[0, 0] = 1
    right[2] = np.nan
    return {"right": right, "density": np.ones((CANDIDATES, 24))} | changes


def test_members_without_outcomes_have_nan_and_leave_the_others_alone(made):
    result = labels_of(Declares(), found(), EXAMPLES, made)
    np.testing.assert_array_equal(result["right"][:, 0], [[1, 0], [0, 0], [np.nan] * 2])
    assert result["right_low"].notnull().sum() == 4
    assert result.sizes == {"member": 3, "group": 1, "kind": 2, "feature": 24}


@pytest.mark.parametrize(
    ("instrument", "outputs", "message"),
    [
        (Declares(), {"wrong": np.ones((CANDIDATES, 4))}, "declares the outputs"),
        (Declares(), {"density": np.ones((CANDIDATES, 23))}, r"output 'density' has shape \(23,\)"),
        (
            type("Null", (Declares,), {"nulls": {"x": {"kind": "y"}}})(),
            {},
            "the null control 'x' needs an output with kind='y', which does not exist",
        ),
        (
            type("Member", (Declares,), {"outputs": Declares.outputs | {"m": ("member",)}})(),
            {},
            "declares the dimension 'member'",
        ),
    ],
)
def test_what_is_not_declared_is_refused(made, instrument, outputs, message):
    with pytest.raises(InputError, match=message):
        labels_of(instrument, found(**outputs), EXAMPLES, made)


def test_a_named_instrument_that_does_not_apply_is_refused(run, made):
    """By default such an instrument is skipped."""
    of_all = [member._replace(steps=run.steps) for member in made.members]
    source = example_source(run, made)._replace(members=tuple(of_all))
    assert "answers" not in [one.name for one in api.choose_instruments(source)]
    with pytest.raises(NotApplicable, match="does not apply to crosscoders"):
        api.choose_instruments(source, ["answers"])
    with pytest.raises(InputError, match="unknown instrument 'answer'; did you mean 'answers'"):
        api.choose_instruments(source, ["answer"])
