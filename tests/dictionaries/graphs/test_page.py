"""The page of attribution graphs has the numbers of the arrays, and a node keeps its place."""

import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from implicit_reasoning.dictionaries.graphs.layout import Node, Row, place_nodes
from implicit_reasoning.dictionaries.graphs.page import KIND, make_page, save_page
from implicit_reasoning.pages import complete_page, write_page
from implicit_reasoning.report.page import _links
from implicit_reasoning.runs import Layout
from tests.dictionaries.graphs.hand_made import LOGITS, NAMES, QUERY, hand_made

SEVEN = Node("feature", 0, 1, 7)


@pytest.fixture(scope="module")
def page():
    return make_page(hand_made())


def data_of(page):
    text = page.body.partition('<script type="application/json" id="graph-data">')[2]
    return json.loads(text.partition("</script>")[0])


def test_a_page_in_the_directory_of_a_run_is_listed_in_its_report(tmp_path, page):
    files = Layout(tmp_path)
    saved = save_page(files, hand_made())
    assert saved == tmp_path / "graphs" / f"{page.name}.html"
    assert _links(files, []) == {f"graphs/{saved.name}": "attribution graphs of a query"}
    written = saved.read_bytes()
    save_page(files, hand_made())
    assert saved.read_bytes() == written and len(list(saved.parent.iterdir())) == 1


def test_its_edges_are_those_of_the_arrays(page):
    data, found = data_of(page), hand_made()
    names = [node["name"] for node in data["nodes"]]
    for at, own in zip(found.graphs, data["graphs"], strict=True):
        assert own["step"] == at.step and own["active"] == 5
        adjacency = at.graph.adjacency
        targets, sources = np.nonzero(adjacency)
        edges = {(names[s], names[t]): (w, share, flow) for s, t, w, share, flow in own["edges"]}
        assert len(edges) == len(own["edges"]) == len(targets)
        reached = at.influence.copy()
        reached[list(LOGITS)] += (0.75, 0.25)
        for target, source in zip(targets, sources, strict=True):
            weight = adjacency[target, source]
            share = abs(weight) / abs(adjacency[target]).sum()
            wanted = weight, share, share * reached[target]
            ends = name(at.graph, source), name(at.graph, target)
            np.testing.assert_allclose(edges[ends], wanted, rtol=1e-3)
        flows = [edge[-1] for edge in own["edges"]]
        assert flows == sorted(flows, reverse=True)


def name(graph, place):
    """Return the name of the node at a place of a hand-made graph."""
    if place < 3:
        where = QUERY.positions[graph.pos[place]]
        return f"feature {graph.feature[place]} of MLP {graph.layer[place]} at {where}"
    if place < 9:
        return f"error of MLP {(place - 3) // 3} at {QUERY.positions[(place - 3) % 3]}"
    if place < 12:
        return f"embedding of {NAMES[QUERY.tokens[place - 9]]} at {QUERY.positions[place - 9]}"
    return f"logit of {NAMES[graph.token[place - 12]]}"


def test_its_nodes_have_activation_label_and_tokens(page):
    data = data_of(page)
    before, after = ({one["node"]: one for one in graph["nodes"]} for graph in data["graphs"])
    assert [len(nodes) for nodes in (before, after)] == [9, 7]
    [seven] = [i for i, node in enumerate(data["nodes"]) if node["number"] == 7]
    assert before[seven]["activation"] == 2.5 and after[seven]["activation"] == 1.5
    assert before[seven]["label"] == ["e2", NAMES[4], 0.75]
    assert after[seven]["label"] == ["e2", NAMES[1], 0.9]
    assert after[seven]["tokens"] == ["a", "<i>c"] and before[seven]["tokens"] == ["r", "s"]
    [answer] = [i for i, node in enumerate(data["nodes"]) if node["name"] == f"logit of {NAMES[4]}"]
    assert after[answer]["probability"] == 0.75 == data["graphs"][1]["answer"]
    assert data["graphs"][0]["bridge_share"] == 0.125 and data["graphs"][0]["null_share"] is None


def test_a_feature_has_one_place_in_the_row_of_its_best_label():
    layout = place_nodes(hand_made())
    rows = {node: layout.rows[row] for node, row in zip(layout.nodes, layout.row_of, strict=True)}
    assert layout.nodes.count(SEVEN) == 1
    # At step 10 it stands for another value, with a lower F1.
    assert rows[SEVEN] == Row(0, 1, "e2", f"e2 = {NAMES[1]}") == rows[Node("feature", 0, 1, 8)]
    assert rows[Node("feature", 1, 2, 2)].text == "r2 = s"
    assert rows[Node("error", 1, 2, -1)].text == "error"
    points = dict(zip(layout.nodes, layout.points, strict=True))
    # Features 5 and 8 are never in the graph together, so they share the second place of the row.
    five, eight = (Node("feature", 0, 1, number) for number in (5, 8))
    assert rows[five] == rows[eight] and points[five] == points[eight] != points[SEVEN]
    assert len(set(points.values())) == len(points) - 1
    heights = [{y for node, (_, y) in points.items() if node.layer == at} for at in range(-1, 3)]
    for lower, upper in itertools.pairwise(heights):
        assert min(lower) > max(upper)  # y grows downwards
    for x, y in points.values():
        assert 0 < x < layout.width and 0 < y < layout.height


def test_nodes_share_a_place_only_if_they_are_never_together():
    found = hand_made(same_features=False)
    layout = place_nodes(found)
    sevens = [node for node in layout.nodes if node[:4] == SEVEN[:4]]
    assert {node.step for node in sevens} == {10, 2000} and len(sevens) == 2
    at = {}
    for node, point in zip(layout.nodes, layout.points, strict=True):
        at.setdefault(point, []).append(node)
    texts = {
        node: layout.rows[row].text
        for node, row in zip(layout.nodes, layout.row_of, strict=True)
        if row >= 0
    }
    assert [texts[node] for node in sorted(sevens, key=lambda node: node.step)] == [
        "another value",
        f"e2 = {NAMES[1]}",
    ]
    assert texts[Node("feature", 1, 2, 2, 10)] == "no label"
    shared = [nodes for nodes in at.values() if len(nodes) > 1]
    assert shared and all(len({node.step for node in nodes}) == len(nodes) for nodes in shared)
    assert "were trained independently" in make_page(found).body
    assert "were trained independently" not in make_page(hand_made()).body


class _Elements(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_it_is_one_file_that_loads_nothing_and_says_what_it_is(page, tmp_path):
    write_page(tmp_path / "graph.html", page, KIND)
    text = (tmp_path / "graph.html").read_text(encoding="utf-8")
    assert text == complete_page(page, KIND)
    found = _Elements(text).found
    for tag, attributes in found:
        assert tag not in ("iframe", "img") and "src" not in attributes, (tag, attributes)
        assert tag != "link" or attributes["href"] == "data:,"
    assert "@import" not in text and "url(" not in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}
    labels = {attributes.get("for") for tag, attributes in found if tag == "label"}
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert {"step", "shown"} <= labels and len(ids) == len(set(ids))
    roles = {attributes["id"]: attributes for _, attributes in found if "role" in attributes}
    assert roles["graph"]["role"] == "group" and "Arrow keys" in roles["graph"]["aria-label"]
    assert roles["status"]["aria-live"] == "polite"


def test_text_is_escaped(page):
    text = complete_page(page, KIND)
    assert "</script><b>" not in text and "<i>c" not in text
    assert "&lt;/script&gt;&lt;b&gt;b" in text
    assert [tag for tag, _ in _Elements(text).found].count("script") == 2


def test_without_scripts_it_has_all_scores_and_the_nodes_of_the_last_checkpoint(page):
    tables = re.findall(r"<tbody.*?</tbody>", page.body, re.DOTALL)
    assert [table.count("<tr") for table in tables] == [2, 7, 0]
    assert "<td>0.12</td><td>\N{EN DASH}</td><td>0.50</td><td>0.25</td>" in tables[0]
    assert "feature 7 of MLP 0 at r1" in tables[1] and "(F1 0.90)" in tables[1]
