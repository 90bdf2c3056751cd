"""Instruments that read states without changing the model.

    lens.py         applies the unembedding to states: the logit lens
    tuned_lens.py   applies a fitted affine map before the unembedding: the tuned lens
    decoding.py     lets the later blocks of the model decode a fact from a state
    probes.py       fits linear probes for each variable
    geometry.py     measures whether states of facts with the same bridge (e2) are similar

    ranking.py      ranks a token among the logits
    ridge.py        fits ridge regressions with cross-validation

These instruments show whether a variable can be decoded from a state. They do not show whether the
model uses the variable. The instruments in `variables` measure use.
"""
