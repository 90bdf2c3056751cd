"""Files of EAP-IG and AutoCircuit are read as those programs wrote them, and come back.

`files/` has a graph that EAP-IG (commit 795f560) wrote and the prune scores of AutoCircuit 1.0.1,
both for a model with two blocks of two heads. The score of an edge is a number that is
computed from its name in the program.
"""

from pathlib import Path

import numpy as np
import pytest

from implicit_reasoning.analysis.circuits import formats, selection
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model.exchange.arrays import read_arrays
from implicit_reasoning.model.units import Edge
from tests.analysis.circuits.tiny import GRAPH

FILES = Path(__file__).parent / "files"
NAMES = [str(edge) for edge in GRAPH.edges]
THEIRS = [formats.auto_circuit_name(edge) for edge in GRAPH.edges]


def eap_ig_score(name):
    """Return a score whose absolute value no other edge has."""
    return sum((2 * i + 1) * ord(letter) for i, letter in enumerate(name)) % 997 - 498.0


def prune_score(name):
    return sum(map(ord, name)) % 97 - 40.0


def test_a_graph_of_eap_ig_is_read():
    found = formats.read_eap_ig(FILES / "eap_ig.json", GRAPH)
    assert found.scores.tolist() == [eap_ig_score(name) for name in NAMES]
    chosen = [name for name, inside in zip(NAMES, found.circuit, strict=True) if inside]
    assert len(chosen) == 11 and {"a0.h1->a1.h0<v>", "a0.h0->logits"} <= set(chosen)


def test_greedy_growth_is_that_of_eap_ig():
    """The circuit in the file was grown to 12 edges and pruned by EAP-IG."""
    found = formats.read_eap_ig(FILES / "eap_ig.json", GRAPH)
    scores = found.scores[:, None].astype(np.float32)
    grown = np.asarray(selection.greedy(GRAPH, scores)) < 12
    np.testing.assert_array_equal(selection.prune(GRAPH, grown)[:, 0], found.circuit)


def test_a_graph_of_eap_ig_comes_back(tmp_path):
    scores = np.random.default_rng(0).normal(size=len(NAMES))
    circuit = np.array([name in ("input->m0", "m0->logits", "a0.h0->m1") for name in NAMES])
    formats.write_eap_ig(tmp_path / "graph.json", GRAPH, scores, circuit)
    found = formats.read_eap_ig(tmp_path / "graph.json", GRAPH)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.circuit, circuit)
    written, theirs = read_json(tmp_path / "graph.json"), read_json(FILES / "eap_ig.json")
    assert written["cfg"] == theirs["cfg"]
    assert list(written["nodes"]) == list(theirs["nodes"])
    inside = [name for name, node in written["nodes"].items() if node["in_graph"]]
    assert inside == ["input", "m0", "logits"]


def test_what_eap_ig_wrote_is_written_again(tmp_path):
    formats.write_eap_ig(
        tmp_path / "graph.json", GRAPH, *formats.read_eap_ig(FILES / "eap_ig.json", GRAPH)
    )
    assert read_json(tmp_path / "graph.json") == read_json(FILES / "eap_ig.json")


@pytest.mark.parametrize("by_position", [False, True])
def test_prune_scores_of_auto_circuit_are_read(by_position):
    path = FILES / f"auto_circuit{'_positions' if by_position else ''}.safetensors"
    found = formats.read_prune_scores(path, GRAPH)
    positions = np.arange(3 if by_position else 1) / 4
    wanted = np.array([prune_score(name) for name in THEIRS])[:, None] + positions
    np.testing.assert_array_equal(found, wanted)
    arrays = read_arrays(path)
    again = formats.to_prune_scores(GRAPH, found)
    assert set(again) == set(arrays)
    for module, array in again.items():
        np.testing.assert_array_equal(array, arrays[module])


def test_prune_scores_come_back(tmp_path):
    scores = np.random.default_rng(0).normal(size=(len(NAMES), 3)).astype(np.float32)
    scores[3, 1] = np.inf  # an edge that ACDC never patches
    formats.write_prune_scores(tmp_path / "scores.safetensors", GRAPH, scores)
    found = formats.read_prune_scores(tmp_path / "scores.safetensors", GRAPH)
    np.testing.assert_array_equal(found, scores)


def test_names_of_auto_circuit():
    assert THEIRS[NAMES.index("input->a0.h1<k>")] == "Resid Start->A0.1.K"
    assert THEIRS[NAMES.index("a0.h0->m1")] == "A0.0->MLP 1"
    assert THEIRS[NAMES.index("m1->logits")] == "MLP 1->Resid End"
    assert [formats.edge_of_auto_circuit(name) for name in THEIRS] == list(GRAPH.edges)
    assert formats.edge_of_auto_circuit("MLP 3->A11.10.V") == Edge("m3", "a11.h10<v>")
    with pytest.raises(InputError, match="'Resid Mid 0' is not a node of AutoCircuit"):
        formats.edge_of_auto_circuit("Resid Mid 0->MLP 1")


def test_files_of_other_models_are_refused(tmp_path):
    content = read_json(FILES / "eap_ig.json")
    for change, message in [
        ({"cfg": content["cfg"] | {"n_heads": 3}}, "has n_heads 3 in `cfg`"),
        ({"edges": dict(list(content["edges"].items())[1:])}, "is missing"),
        ({"edges": content["edges"] | {"a0.h9->m0": {}}}, r"a0\.h9->m0 is not among them"),
        ({"edges": dict.fromkeys(content["edges"], 1.0)}, "must have `score` and `in_graph`"),
        ({"cfg": None}, "in `cfg`"),
    ]:
        write_json(tmp_path / "graph.json", content | change)
        with pytest.raises(InputError, match=message):
            formats.read_eap_ig(tmp_path / "graph.json", GRAPH)
    write_json(tmp_path / "graph.json", [])
    with pytest.raises(InputError, match="is not a graph of EAP-IG"):
        formats.read_eap_ig(tmp_path / "graph.json", GRAPH)
    arrays = formats.to_prune_scores(GRAPH, np.zeros((len(NAMES), 1)))
    with pytest.raises(InputError, match=r"blocks\.0\.hook_mlp_in is missing"):
        formats.from_prune_scores(
            GRAPH, {name: x for name, x in arrays.items() if name != "blocks.0.hook_mlp_in"}
        )
    with pytest.raises(InputError, match=r"has shape \(2, 2\)"):
        formats.from_prune_scores(GRAPH, arrays | {"blocks.0.hook_q_input": np.zeros((2, 2))})
