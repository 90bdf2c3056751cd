"""Causal interventions on a variable in the residual stream: swap its value, or erase it.

    mean_swap.py        replaces the class mean of the current value by that of a new value
    erasure.py          erases a variable with LEACE
    das.py              interchanges a learnt subspace (distributed alignment search)

    counterfactuals.py  rows to intervene on, and their counterfactual answers (on the host)
    controls.py         values for the controls, and draws of values to erase (on the host)
    subspaces.py        class means, subspaces, whitening and erasers
    cells.py            edits at every (layer, position), and the resulting answers
    alignment.py        the optimisation of `das`
    interchange.py      pairs of base and source prompts for `das`, with the expected answers

Each instrument has controls that can fail. `mean_swap` inserts class means of wrong values or of
another variable. `erasure` erases equally many wrong directions. `das` repeats the search in
settings in which it must not succeed.
"""
