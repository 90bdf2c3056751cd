"""Circuits: which edges of the model the answer is computed through.

Instruments and their figures:

edge_patching.py       patches each edge alone, at every checkpoint
circuit_discovery.py   finds circuits of all sizes, and measures how faithful they are
causal_scrubbing.py    tests a hypothesis by runs on prompts that it calls equivalent
edge_instrument.py     the base class of the first two
edge_figures.py        figures of `edge_patching`
discovery_figures.py   figures of `circuit_discovery`
page.py                the page of a circuit, with a slider (circuit.html, circuit.css, circuit.js)

Functions of arrays, for one model:

scores.py              effects of patching each edge, exact or estimated from gradients
cost.py                FLOPs of the scores, before anything runs
nodes.py               effects of patching all edges of a sender together
paths.py               effects of a value that travels along one path only
routes.py              circuits through and around a position
hypotheses.py          what parts of a run stand for, and prompts that can replace them
scrubbing.py           runs whose parts are replaced
corruptions.py         values of edges outside of a circuit: means, zeros, noise
selection.py           circuits from scores: by rank, by growth from the logits, by threshold
acdc.py                circuits by patching edges for good, one after another
learned_masks.py       circuits by training a mask of all edges
evaluation.py          runs of circuits: metrics, knock-outs, the effect of single edges
curves.py              numbers from saved metrics: faithfulness, areas, AUROC, stability
formats.py             files of EAP-IG and AutoCircuit
"""
