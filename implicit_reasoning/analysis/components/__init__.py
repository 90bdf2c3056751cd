"""Components: which heads, attention layers, MLPs and neurons compute the answer.

Attribution:

direct_logit_attribution.py  what each component writes directly into a logit difference
attribution.py               estimates of patching effects from gradients, beside exact effects
neuron_attribution.py        the same for single neurons
pair_attribution.py          defines the base class of the two instruments of attribution
estimates.py                 estimates patching effects from gradients
agreement.py                 compares estimated effects with exact effects
attribution_figures.py       draws the results of the two instruments of attribution

Ablation:

ablation.py          replaces the output of a component by zero, by a mean or by another example's
ablation_runs.py     runs the ablated models
ablation_figures.py  draws the results of ablation

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

Neurons:

neuron_keys.py        finds what activates each neuron, and what the neuron writes
neuron_importance.py  compares a direct estimate of each neuron's importance with its ablation
fact_neurons.py       counts the neurons of a fact, and compares its first hop with its last hop
enrichment.py         decodes tails of e1 at e1 while early MLPs or attention are off
triggers.py           lists the triggers of neurons, such as facts, and their states
key_scores.py         matches the activity of neurons with triggers
neuron_weights.py     reads the weights of neurons in the space of tokens
neuron_effects.py     computes effects of neurons, by ablation and by log probability increase
fact_chains.py        chooses facts that begin some chains and end others
neuron_figures.py     draws the figures of neurons

Progress measures:

fourier_progress.py      measures the formation of the Fourier circuit for modular addition
composition_progress.py  measures the loss with only the shared code of the bridge, or without
fourier.py               computes Fourier components of functions of a residue
fourier_figures.py       draws the progress of modular addition, and finds its phases
composition_figures.py   draws the progress of composition
losses.py                computes losses that stay accurate at a probability of 1
"""
