"""circuit-tracer's front end, as pip installs it, displays our graphs.

It loads six scripts from other hosts. The tests answer with npm's versions of d3, d3-jetpack, dagre
and pako, and with nothing for a live reload of its authors and a reader of .npy files, which no
graph needs.
"""

import subprocess

import jax
import jax.numpy as jnp
import pytest

from implicit_reasoning.dictionaries.graphs.exchange import graph_json, save_graph
from implicit_reasoning.files import write_json
from tests.dictionaries.graphs.hand_made import QUERY, hand_made
from tests.peers.environment import ROOT

pytestmark = pytest.mark.browser

LIBRARIES = ROOT / ".peers" / "front_end" / "node_modules"

# The front end uses a version of d3-jetpack in which the margins of a chart draw its axes.
DRAW_AXIS = """
{
  const conventions = d3.conventions;
  d3.conventions = (options) => {
    const chart = conventions(options);
    chart.drawAxis = (svg) => d3.drawAxis({ ...chart, svg: svg || chart.svg });
    return chart;
  };
}
"""


# The front end asks for the examples of a feature if it is clicked. Ours has none.
EXAMPLES = {"examples_quantiles": [], "top_logits": ["t1"], "bottom_logits": []}


def library(*files):
    return "\n".join((LIBRARIES / file).read_text(encoding="utf-8") for file in files)


def answers():
    """Return the scripts that the front end loads from other hosts."""
    assert LIBRARIES.exists(), f"{LIBRARIES} is missing; `make test-browser` builds it"
    return {
        "/d3.js": library("d3-collection/dist/d3-collection.js", "d3/dist/d3.js"),
        "/jetpack_2024-07-20.js": library("d3-jetpack/build/d3-jetpack.cjs") + DRAW_AXIS,
        "/dagre.min.js": library("dagre/dist/dagre.js"),
        "/pako.min.js": library("pako/dist/pako.js"),
        "/hotserver-client-ws.js": "",
        "/npy_v0.js": "",
    }


@pytest.fixture
def served(tmp_path):
    """Return the address of the front end, and our two graphs."""
    made = []
    for at in hand_made().graphs:
        graph = jax.tree.map(jnp.asarray, at.graph)
        made.append(
            graph_json(
                f"step-{at.step}",
                graph,
                tokens=QUERY.tokens,
                names=[f"t{token}" for token in range(len(QUERY.names))],
                n_layers=QUERY.n_layers,
                labels={(0, 7): "the bridge"},
                scan="./data/features",
                nodes=1.0,
                edges=1.0,
            )
        )
        save_graph(tmp_path, made[-1])
        for node in made[-1]["nodes"]:
            write_json(tmp_path / "features" / f"{node['feature']}.json", EXAMPLES)
    python = ROOT / ".peers" / "circuit_tracer" / "bin" / "python"
    assert python.exists(), f"{python} is missing; `make test-browser` builds it"
    server = subprocess.Popen(
        [python, ROOT / "tests" / "browser" / "serve_graphs.py", tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield f"http://localhost:{int(server.stdout.readline())}", made
    server.stdin.close()
    server.wait(30)


def test_it_displays_all_nodes_and_the_edges_of_one(served, open_page):
    address, made = served
    page = open_page(f"{address}/index.html?slug=step-2000", answers())
    nodes = page.locator(".link-graph .node")
    nodes.first.wait_for()
    graph = made[1]
    shown = page.evaluate("d3.selectAll('.link-graph .node').data().map(d => d.node_id)")
    assert sorted(shown) == sorted(node["node_id"] for node in graph["nodes"])
    assert len(shown) >= 7
    tokens = page.locator(".link-graph .prompt-token").all_text_contents()
    assert [token.strip() for token in tokens] == graph["metadata"]["prompt_tokens"]
    # Its layers go upwards, as the layers of the nodes say.
    heights = page.evaluate(
        "d3.selectAll('.link-graph .node').data().map(d => [d.node_id, d.pos[1]])"
    )
    by_layer = {name.partition("_")[0]: height for name, height in heights}
    assert by_layer["E"] > by_layer["0"] > by_layer["1"] > by_layer["3"]
    # Clicking our feature shows its label and its edges.
    [bridge] = [node["node_id"] for node in graph["nodes"] if node["clerp"] == "the bridge"]
    place = nodes.nth(shown.index(bridge)).bounding_box()
    page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    connections = page.locator(".node-connections")
    connections.get_by_text("the bridge").first.wait_for()
    shown = connections.locator(".feature-row .weight").all_text_contents()
    weights = [
        link["weight"] for link in graph["links"] if bridge in (link["source"], link["target"])
    ]
    assert len(weights) == 3
    assert sorted(float(text.replace("\N{MINUS SIGN}", "-")) for text in shown) == sorted(weights)
