"""Patching: replace states of one run by those of another, and measure the effect on the answer.

    activation_patching.py   exchange one input token: where its information passes
    cross_query_patching.py  patch in the bridge of another query: whether the answer follows
    pair_patching.py         any prompt pairs and metrics: every site, layer and position
    neurons.py               the same for single neurons
    back_patching.py         patch a later state into an earlier layer
    parameters.py            patch in weights of another checkpoint

    grids.py                 grids of patches over all layers and positions
    outcomes.py              shares of outcomes, and graded metrics of an answer
    query_pairs.py           selection of query pairs from the world
    pairs.py                 clean and corrupt prompt pairs, and functions that make them
    metrics.py               metrics of an answer
    functions.py             pairs and metrics of the user, by import path
    pair_instrument.py       base class of instruments that take pairs and metrics

These instruments patch whole states. This shows that information for the answer passes a place, but
not in which code: a state that is used for its prefix may also contain the bridge.
"""
