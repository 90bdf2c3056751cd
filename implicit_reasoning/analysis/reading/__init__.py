"""Reading: what a state says, with nothing changed in the model that it is read from.

    lens.py         through the unembedding
    tuned_lens.py   the same, after an affine map fitted to each place
    decoding.py     by the model itself: what the later blocks make of a state
    probes.py       by a linear map fitted to each variable
    geometry.py     where states lie: cohesion, alignment, enrichment, pictures

    ranking.py      where a wanted class stands among the others
    ridge.py        linear maps of all checkpoints in one solve

What can be read need not be used; see `variables` and `used.py`.
"""
