"""Patching: states of one run put into another, and what the answer becomes.

    activation_patching.py   one input token exchanged: where what it says passes
    cross_query_patching.py  a bridge from another question: is it followed?
    pair_patching.py         any pairs of prompts, any metrics: every site, layer and position
    neurons.py               the same, of single neurons
    back_patching.py         a later state put back into an earlier layer
    parameters.py            weights from another checkpoint

    grids.py                 all (layer, position) cells of a patch, each on its cone
    outcomes.py              what became of an answer: three fractions, and graded measures
    query_pairs.py           which queries meet, by the truth of the world
    pairs.py                 pairs of prompts, clean and corrupt; functions that make them
    metrics.py               metrics of an answer
    functions.py             pairs and metrics of the user's own, by import path
    pair_instrument.py       the form of instruments that take pairs and metrics

A whole state is exchanged here. That shows that what the answer needs passes the place; it does not
show in which code: a state that is used for its prefix may merely contain the bridge, too.
"""
