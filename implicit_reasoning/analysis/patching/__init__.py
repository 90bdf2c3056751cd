"""Patching: copy states from one forward pass into a second one, and measure the answer.

    activation_patching.py   patches between a query and the same query with one token exchanged
    cross_query_patching.py  patches the bridge state of a query into a query with another bridge
    pair_patching.py         patches between the prompts of any pair, with any metrics
    neurons.py               patches single neurons between the prompts of any pair
    back_patching.py         patches the state of a later layer into an earlier layer
    parameters.py            patches the weights of one checkpoint into another checkpoint

    grids.py                 computes patches of all layers and positions
    outcomes.py              classifies the answer after a patch, and computes its probability
    query_pairs.py           chooses pairs of queries from the world
    pairs.py                 makes pairs of a clean and a corrupt prompt
    metrics.py               defines metrics of an answer, such as the logit difference
    functions.py             finds the pairs and metrics that users define in their own files
    pair_instrument.py       defines the base class of instruments that take pairs and metrics

Most patches replace a whole state. If the answer changes, the answer depends on information in the
state. The patch does not show on which information. For example, a state may represent the bridge
and also e1 and r1, and the model may use only e1 and r1.
"""
