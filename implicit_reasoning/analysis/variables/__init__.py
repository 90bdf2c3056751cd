"""Causal interventions on a variable in the residual stream: swap its value, or erase it.

    mean_swap.py        replaces the class mean of one value by that of another value
    erasure.py          erases a variable with LEACE
    das.py              interchanges a learnt subspace (distributed alignment search)

    counterfactuals.py  cases and their counterfactual answers from the world (on the host)
    controls.py         values for the controls, and draws of values to erase (on the host)
    subspaces.py        class means, subspaces, whitening and erasers
    cells.py            edits at every (layer, position), and the resulting answers
    alignment.py        the optimisation of `das`
    interchange.py      pairs of base and source prompts for `das`, with the expected answers

Each instrument has controls that can fail: codes of other values or variables, erasures of equally
many other directions, and searches that must not succeed.
"""
