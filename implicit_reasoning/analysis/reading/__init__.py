"""Instruments that read states without changing the model.

    lens.py         the logit lens, which reads states with the unembedding
    tuned_lens.py   the tuned lens, which applies a fitted affine map before the unembedding
    decoding.py     decoding of facts by the model's own later blocks
    probes.py       linear probes, which are fitted to each variable
    geometry.py     geometry of states: cohesion, alignment, enrichment, projections

    ranking.py      rank of a token among the logits
    ridge.py        cross-validated ridge regression

These instruments do not show whether the model uses a variable that can be read; see `variables`
and `used.py`.
"""
