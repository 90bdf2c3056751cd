"""Tutorial 3 shows numbers of TransformerLens: its script finds them again."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.peers.environment import ROOT, run_file

pytestmark = pytest.mark.peers

TUTORIALS = ROOT / "docs" / "tutorials"
NAMES = {"logits", "state", "pattern", "grid", "heads"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """`(here, again, kept)`: arrays of the tutorial, of the script now, and of the page."""
    folder = tmp_path_factory.mktemp("tutorial")
    [source] = TUTORIALS.glob("3_*.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTORIAL_SIZE", "smoke")
        patch.setattr(plt, "show", plt.close)
        patch.chdir(folder)
        variables = {"__name__": "__main__"}
        exec(compile(source.read_text(encoding="utf-8"), str(source), "exec"), variables)
    script = TUTORIALS / "transformer_lens_part.py"
    run_file("transformer_lens_2", script, folder / "again.npz", folder=folder)
    again, kept = (
        dict(np.load(path))
        for path in (folder / "again.npz", TUTORIALS / "transformer_lens_part.npz")
    )
    return variables["ours"], again, kept


def test_the_page_has_what_the_script_finds(found):
    _, again, kept = found
    assert again["version"] == kept["version"]
    for name in NAMES:
        np.testing.assert_allclose(again[name], kept[name], rtol=0, atol=1e-4, err_msg=name)


def test_both_packages_find_the_same(found):
    here, again, _ = found
    assert here.keys() == NAMES == again.keys() - {"version"}
    for name in NAMES:
        np.testing.assert_allclose(here[name], again[name], rtol=0, atol=1e-4, err_msg=name)
    # Cells and heads differ from each other, so a shifted grid would not pass.
    assert again["grid"].max() > 0.9 > 0.1 > again["grid"].min()
    assert again["heads"].max() > 0.9 > 0.1 > again["heads"].min()
