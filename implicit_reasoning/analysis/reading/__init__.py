"""Instruments that read states without changing the model.

    lens.py         logit lens: through the unembedding
    tuned_lens.py   tuned lens: through a fitted affine map and the unembedding
    decoding.py     decoding by the model's own later blocks
    probes.py       linear probes, fitted to each variable
    geometry.py     geometry of states: cohesion, alignment, enrichment, projections

    ranking.py      rank of a token among the logits
    ridge.py        cross-validated ridge regression

A variable that can be read need not be used; see `variables` and `used.py`.
"""
