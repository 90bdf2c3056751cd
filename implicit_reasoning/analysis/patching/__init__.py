"""Patching: replace states of one forward pass by states of a second one, and measure the answer.

    activation_patching.py   patch between a query and the same query with one token exchanged
    cross_query_patching.py  patch the bridge state of one query into a query with another bridge
    pair_patching.py         patch between the prompts of any pair, and measure with any metrics
    neurons.py               patch single neurons between the prompts of any pair
    back_patching.py         patch the state of a later layer into an earlier layer
    parameters.py            patch the weights of one checkpoint into another checkpoint

    grids.py                 grids of patches over all layers and positions
    outcomes.py              outcomes of a patch, and graded metrics of an answer
    query_pairs.py           selection of query pairs from the world
    pairs.py                 clean and corrupt prompt pairs, and functions that make them
    metrics.py               metrics of an answer
    functions.py             functions of the user for pairs and metrics, found by import path
    pair_instrument.py       base class of instruments that take pairs and metrics

Most patches replace a whole state. If the answer changes, the state holds information on which the
answer depends. The patch does not show which information this is. For example, a state that holds
the bridge may also hold e1 and r1, and the model may use only e1 and r1.
"""
