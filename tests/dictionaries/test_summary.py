"""Dictionaries in notebooks."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.config import to_json
from implicit_reasoning.dictionaries import load
from implicit_reasoning.dictionaries.store import Files, save
from implicit_reasoning.files import write_json
from implicit_reasoning.runs import save_arrays
from tests.dictionaries.planted import untrained
from tests.dictionaries.small import SITE, config
from tests.notebooks import cells, checked


@pytest.fixture(scope="module")
def made(run):
    asked, files = config(name="shown", read=(SITE,)), Files.of(run, "shown")
    found = untrained(run, asked)
    write_json(files.config, to_json(asked))
    save(files, found)
    return found


def test_members_and_their_measured_l0(run, made):
    assert repr(made).startswith("Dictionaries('shown', 4 members, topk, Autoencoder(")
    html = made._repr_html_()
    texts = checked(html)
    assert texts[0] == "Dictionaries shown"
    assert texts[1:5:2] == ["architecture", "d_in, d_sae, d_out"]
    assert texts[2:6:2] == ["Autoencoder", "8, 24, 8"] and "topk, k at most 3" in texts
    header, *rows = cells(html)
    assert header == ["member", "step", "site", "sparsity", "seed"] and len(rows) == 4
    first = made.members[0]
    assert rows[0] == ["0", str(first.step), SITE, f"{first.sparsity:g}", "0"]
    # Results may be in another order, may lack members, and have baselines.
    names = ("step", "site", "sparsity", "seed")
    some = [made.members[2], made.members[0], made.members[0]]
    coords = {name: ("member", [getattr(one, name) for one in some]) for name in names}
    coords["what"] = ("member", ["trained", "random", "trained"])
    result = xr.Dataset({"l0": ("member", np.array([2.5, 9.0, 1.5]))}, coords)
    save_arrays(Files.of(run, "shown").result("reconstruction"), result)
    loaded = load(run, "shown")
    header, *rows = cells(loaded._repr_html_())
    assert header[-1] == "L0" and [row[-1] for row in rows] == ["1.500", "", "2.500", ""]
    assert checked(loaded._repr_html_())[0] == f"Dictionaries {loaded.files.folder}"
    loaded.files.result("reconstruction").write_bytes(b"damage")
    assert any("cannot be read" in text for text in checked(loaded._repr_html_()))


def test_one_dictionary(made):
    texts = checked(made.dictionary._repr_html_())
    assert texts[0].strip() == "InferenceDictionary" and "8, 24, 8" in texts
