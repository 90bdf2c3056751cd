"""Intervene on a variable in the residual stream: swap its value, or erase it.

    mean_swap.py        subtracts the class mean of the old value and adds the mean of a new value
    erasure.py          erases a variable with LEACE
    das.py              exchanges the component of states in a learned subspace

    counterfactuals.py  chooses rows to edit, with their counterfactual answers (on the host)
    controls.py         chooses values for the controls, and values to erase (on the host)
    subspaces.py        computes class means, subspaces, whitening transforms and erasers
    cells.py            edits states at every (layer, position), and computes the answers
    alignment.py        optimizes the subspaces of `das`
    interchange.py      chooses pairs of base and source prompts for `das`

Each instrument has controls that can fail. The controls of `mean_swap` insert class means of wrong
values or of a different variable. The controls of `erasure` erase the same number of wrong
directions. The controls of `das` repeat the search with shuffled answers and in an untrained model.
"""
