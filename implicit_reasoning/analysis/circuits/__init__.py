"""Circuits: which edges of the model the answer is computed through.

scores.py              effects of patching each edge, exact or estimated from gradients
selection.py           circuits from scores: by rank, by growth from the logits, by threshold
acdc.py                circuits by removal of one edge after the other
evaluation.py          runs of circuits, knock-outs, and effects of single edges of a circuit
curves.py              numbers from saved metrics: faithfulness, areas, AUROC, stability
edge_patching.py       the instrument that patches each edge alone
circuit_discovery.py   the instrument that finds circuits and measures their faithfulness
edge_figures.py        figures of `edge_patching`
discovery_figures.py   figures of `circuit_discovery`
page.py                the page of a circuit, with a slider (circuit.html, circuit.css, circuit.js)
"""
