"""Variables: what follows when what a state says of one variable is exchanged, or goes.

    swap.py             class means exchanged
    erasure.py          a concept erased (LEACE)
    das.py              an interchange in a subspace that is searched for

    counterfactuals.py  what the answer would be, by the truth of the world (on the host)
    controls.py         other values for the controls, and draws of values to erase (on the host)
    subspaces.py        where a variable lives in a state
    cells.py            every (layer, position) edited, and what becomes of the answer
    alignment.py        the search of `das`
    interchange.py      its pairs of questions, and what they should do to each other

Each has controls that can fail: other codes in place of the right one, erasures as large of other
directions, searches that must not succeed.
"""
