"""Patching: copy states from one forward pass into a second one, and measure the answer.

    activation_patching.py   patches between a query and a copy with one replaced token
    cross_query_patching.py  patches the state of a query into a query with a different bridge
    pair_patching.py         patches between the prompts of any pair, with any metrics
    neurons.py               patches single neurons between the prompts of any pair
    back_patching.py         patches the state of a later layer into an earlier layer
    parameters.py            patches the weights of one checkpoint into another checkpoint

    grids.py                 patches all layers and positions, one at a time
    projections.py           patches queries, keys and values of heads, one at a time
    outcomes.py              classifies the answer after a patch, and computes its probability
    query_pairs.py           chooses pairs of queries from the world
    pairs.py                 makes pairs of a clean and a corrupt prompt
    metrics.py               defines metrics of an answer, such as the logit difference
    functions.py             finds the pairs and metrics that users define in their own files
    pair_instrument.py       defines the base class of instruments that take pairs and metrics

Most patches replace a whole state. If the answer changes, the answer depends on information in the
state. The patch does not show which information the answer depends on. For example, a state may
represent the bridge and also e1 and r1, and the model may use only e1 and r1.
"""
