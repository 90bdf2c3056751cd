"""Components: which heads, attention layers, MLPs and neurons compute the answer.

Attribution:

direct_logit_attribution.py  what each component writes directly into a logit difference
attribution.py               estimates of patching effects from gradients, beside exact effects
neuron_attribution.py        the same for single neurons
pair_attribution.py          defines the base class of the two instruments of attribution
estimates.py                 estimates patching effects from gradients
agreement.py                 compares estimated effects with exact effects
attribution_figures.py       draws the results of the two instruments of attribution

Heads:

attention.py          attention patterns, and the knock-out of attention edges
attention_figures.py  draws attention patterns and knock-outs
knock_out.py          knocks out attention edges
detection.py          attention patterns that name a head, and the similarity to them
head_scores.py        scores of heads: previous token, duplicate, induction, copying, successor
head_circuits.py      how heads compose, and which heads copy, from the weights alone
head_moves.py         the variable that each head copies to a later position
moved_vectors.py      the vectors that heads copy, and the values that they identify
token_maps.py         what a head does to single tokens, from its weights
rows.py               chooses rows whose answers are at the same position
"""
"""Instruments that measure the parts of a model: heads, neurons, directions and weights.

fourier_progress.py       measures the formation of the Fourier circuit for modular addition
composition_progress.py   measures the loss with only the shared code of the bridge, or without

fourier.py                computes Fourier components of functions of a residue
fourier_figures.py        draws the progress of modular addition, and finds its phases
composition_figures.py    draws the progress of composition
losses.py                 computes losses that stay accurate at a probability of 1
"""
