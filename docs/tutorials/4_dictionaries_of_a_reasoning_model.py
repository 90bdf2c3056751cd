# %% [markdown]
# # Dictionaries of a reasoning model
#
# **Question.** We train sparse dictionaries on the states of a model that answers chains of facts.
# Do they find the bridge entities, and does the model use what they find?
#
# In a language model we do not know which features to expect. Here we know the bridge of every
# state, so a feature can be right or wrong. The model is the trained run of
# [tutorial 1](1_watch_a_transformer_grok.md). With that run, this tutorial takes about 5 minutes on
# two cores.

# %%
training, small = {}, {}  # changes of the training of the model, and of the dictionaries

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.dictionaries.small import SMALL
    from tests.training.tiny import TINY

    training, small = TINY, SMALL | {"steps": ()}

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training import train

config = apply_overrides(load_config("composition:pocket"), training)
run = train(config, "runs/tutorials/grok")  # a finished run is only opened
print(run)

# %% [markdown]
# ## Train
#
# A *set* of dictionaries has one member for each site, sparsity, checkpoint and seed. All members
# are trained in one compiled program. States come from the model's forward pass. There is one
# example for each distinct state, and a part of the prefixes is held out.
#
# We train TopK autoencoders on the residual stream after the first block, at all positions. This is
# where the bridge is used ([tutorial 2](2_decodable_or_used.md)). Four checkpoints show when
# features appear. Step 0 is the untrained model, which is a baseline. Two seeds show how much
# differs between two dictionaries of the same states.

# %%
from implicit_reasoning.dictionaries import measure_dictionaries, train_dictionaries

defaults = "implicit_reasoning.dictionaries.defaults"
changes = {
    "name": "saes",
    "activation_fn": "topk",
    "read": ("blocks.0.hook_resid_post",),
    "write": ("blocks.0.hook_resid_post",),
    "sparsities": (8.0,),
    "steps": (0, 500, 2000, 6000),
    "seeds": 2,
}
saes = train_dictionaries(
    run, apply_overrides(load_config(f"{defaults}:autoencoder"), changes | small)
)
for member in saes.members:
    print(f"step {member.step:5d}, {member.site}, k = {member.sparsity:.0f}, seed {member.seed}")

# %% [markdown]
# A transcoder reads the input of an MLP and predicts its output. We train two on the MLP of the
# first block, at the last checkpoint.

# %%
changes = {
    "name": "transcoders",
    "read": ("blocks.0.ln2.hook_normalized",),
    "write": ("blocks.0.hook_mlp_out",),
    "sparsities": (8.0,),
    "checkpoints": 1,  # the last
    "seeds": 2,
    "baselines": False,
}
transcoders = train_dictionaries(
    run, apply_overrides(load_config(f"{defaults}:transcoder"), changes | small)
)

# %% [markdown]
# ## Measure
#
# `measure_dictionaries` runs instruments and baselines, and returns labeled arrays. The dimension
# `member` has the dictionaries first, then the baselines.

# %%
instruments = ("reconstruction", "answers", "concepts", "use")
sae = measure_dictionaries(run, saes, instruments)
transcoder = measure_dictionaries(run, transcoders, instruments)
print(f"{sae.attrs['n_trained']} states to train on, {sae.attrs['n_states']} held out")

# %% [markdown]
# How well do the dictionaries reconstruct? `explained` is the explained variance on held-out
# states. `recovered` is measured on `test_ii`. Mean ablation of the site costs cross-entropy, of
# which the model with the dictionary in it recovers this share.

# %%
last = run.steps[-1]


def label(result, number):
    """A name for a dictionary or a baseline."""
    what, seed = str(result.what.values[number]), int(result.seed[number])
    architecture = "transcoder" if result is transcoder else "SAE"
    return f"{architecture}, seed {seed}" if what == "trained" else what


print(f"{'step':>5s}  {'':18s} {'active':>6s}  explained  recovered")
for result in (sae, transcoder):
    for number in range(result.sizes["member"]):
        one = result.isel(member=number)
        recovered = float(one.ce_loss_score_mean.sel(split="test_ii"))
        print(
            f"{int(one.step):5d}  {label(result, number):18s} {float(one.l0):6.1f}"
            f"  {float(one.explained_variance):9.2f}  {recovered:9.2f}"
        )

# %% [markdown]
# The states of the *untrained* model (step 0) are reconstructed best. So a good reconstruction does
# not say that the features mean something. In this model ablation costs too little for a share to
# be defined.

# %% [markdown]
# ## Which features stand for bridges?
#
# For every bridge entity the instrument `concepts` finds the feature whose activity at `r1`
# predicts best that this entity is the bridge. The feature is chosen on half of the facts, and its
# F1 is measured on the other half. For the null the bridges are permuted.

# %% alt="F1 of the best feature of each bridge, by checkpoint of the model and seed"
import matplotlib.pyplot as plt
import numpy as np

from implicit_reasoning.figures import BLUE, GREY, ORANGE, VERMILION

f1 = sae.f1.sel(concept="e2@r1")
null = float(sae.f1_null.sel(concept="e2@r1").max())
trained = [number for number, what in enumerate(sae.what.values) if what == "trained"]
jitter = np.random.default_rng(0).uniform(-0.15, 0.15, f1.sizes["value"])

fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
steps = sorted({int(sae.step[number]) for number in trained})
for number in trained:
    x = steps.index(int(sae.step[number])) + (0.2 if sae.seed[number] else -0.2)
    color = ORANGE if sae.seed[number] else BLUE
    ax.plot(x + jitter, f1[number], ".", color=color, markersize=4, alpha=0.6)
    ax.plot([x - 0.17, x + 0.17], [f1[number].mean()] * 2, color="black", linewidth=2)
ax.axhline(null, color=GREY, linestyle="--")
ax.set_xticks(range(len(steps)), [f"{step:,}" for step in steps])
ax.set(xlabel="checkpoint of the model (training step)", ylabel="F1 of the bridge's best feature")
ax.legend(
    handles=[
        plt.Line2D([], [], marker=".", linestyle="", color=BLUE, label="a bridge, seed 0"),
        plt.Line2D([], [], marker=".", linestyle="", color=ORANGE, label="a bridge, seed 1"),
        plt.Line2D([], [], color="black", linewidth=2, label="mean over bridges"),
        plt.Line2D(
            [], [], color=GREY, linestyle="--", label="null: highest mean, bridges permuted"
        ),
    ],
    frameon=False,
    fontsize=9,
)
plt.show()
for number in trained:
    high = int((f1[number] >= 0.5).sum())
    print(
        f"step {int(sae.step[number]):5d}, seed {int(sae.seed[number])}: mean F1"
        f" {float(f1[number].mean()):.2f}, at least .5 for {high} of"
        f" {int(f1[number].notnull().sum())} bridges"
    )
print(f"null, at most: {null:.2f}")

# %% [markdown]
# *How to read it.* A dot is a bridge entity. Its height says how well the activity of one feature
# tells this entity from all others, on facts that the feature was not chosen on. A black bar is the
# mean of one dictionary. The dashed line is the highest mean that any dictionary reaches when the
# bridges are permuted.
#
# The next cell looks at the feature with the highest F1, and at the facts on which it is most
# active.

# %%
import jax

number = trained[-1]  # the last checkpoint
entity = int(f1[number].fillna(0).argmax("value"))
feature = int(sae.best_feature.sel(concept="e2@r1", value=entity)[number])

dataset = run.dataset
facts = dataset.rows("id_triples")
params = jax.tree.map(lambda leaf: leaf[0], run.params([last]))
site = saes.members[number].read[0]
_, values = run.model.forward(params, dataset.tokens[facts], sites=[site])
acts = saes.dictionary.encode(saes.params_of(number), values[site][:, 1])[:, feature]
acts = np.asarray(acts)

print(f"feature {feature}, F1 {float(f1[number, entity]):.2f} for {dataset.vocab[entity]}")
tails = dataset.truth["answer"][facts]
both = (acts > 0) & (tails == entity)
print(f"active on {(acts > 0).sum()} of {len(facts)} I facts")
print(f"{both.sum()} of these, and {(tails == entity).sum()} of all, lead to this entity")
for place in np.argsort(-acts)[:8]:
    e1, r1 = (dataset.vocab[token] for token in dataset.tokens[facts[place], :2])
    print(f"{acts[place]:6.2f}  {e1} {r1} -> {dataset.vocab[tails[place]]}")

# %% [markdown]
# ## Does the model use these features?
#
# The instrument `use` swaps the feature of a bridge for that of another bridge in `S[1, r1]`, and
# counts the answers that become those of the other bridge. The same swap with the mean codes of the
# bridges needs no dictionary. It says how much there is to find.
#
# The baselines are measured by the same code. `k-means` has as many centroids as the dictionary has
# features, and one is active. `linear` is PCA. `neurons` are the coordinates of the residual
# stream. `frozen decoder` is trained as the SAEs are, except that its directions stay random.
# `class means` takes the true bridges as clusters, so it is an upper bound.


# %%
def moved(result, number, rule="truth"):
    """Share of answers that follow a swap, and the ends of its 95% interval."""
    of = result.isel(member=number).sel(rule=rule, change="swap", outcome="moved")
    return [float(of[f"use{end}"]) for end in ("", "_low", "_high")]


final = [number for number in trained if sae.step[number] == last]
baselines = [number for number in range(sae.sizes["member"]) if number not in trained]
chosen = [(sae, n) for n in final] + [(transcoder, n) for n in range(len(transcoders))]
chosen += [(sae, n) for n in baselines]
rows = {
    label(result, n): (float(result.f1.sel(concept="e2@r1")[n].mean()), *moved(result, n))
    for result, n in chosen
}
print("95% intervals, clustered by the replaced bridge")
for name, (score, mean, low, high) in rows.items():
    print(f"{name:20s} F1 {score:.2f}   follow {mean:.2f} [{low:.2f}, {high:.2f}]")

# %% alt="Mean F1, and share of answers that follow a swap, of every dictionary and baseline"
fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
places = np.arange(len(rows))[::-1]
scores, means, lows, highs = np.array(list(rows.values())).T
ends = np.abs([lows - means, highs - means])
axes[0].barh(places, scores, color=BLUE, height=0.6)
axes[1].barh(places, means, color=VERMILION, height=0.6)
axes[1].errorbar(means, places, xerr=ends, fmt="none", color="black", capsize=2)
code, chance = (moved(sae, final[0], rule)[0] for rule in ("class means", "null"))
axes[0].axvline(null, color=GREY, linestyle="--", label="null: bridges permuted")
axes[1].axvline(chance, color=GREY, linestyle="--")
axes[1].axvline(code, color="black", linestyle="--", label="swap of mean codes, no dictionary")
axes[0].set_yticks(places, rows)
axes[0].set(xlabel="mean F1 of the bridges' features", xlim=(0, 1))
axes[1].set(xlabel="share of answers that follow a swap", xlim=(0, 1.02))
fig.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# *How to read it.* A row is a dictionary of the last checkpoint, or a baseline. Left: do its
# features stand for bridges? Right: do answers become those of another bridge when the features are
# swapped? Black whiskers: 95% intervals.
#
# The features were chosen by F1. Do other rules find features that are used more?

# %%
for rule in ("truth", "activation", "attribution", "null", "class means"):
    shares = [moved(sae, number, rule) for number in final]
    text = ", ".join(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in shares)
    print(f"{rule:12s} {text}")

# %% [markdown]
# The columns are the two seeds. `truth` is the rule above. `activation` takes the feature that is
# most active where the bridge is present, and `attribution` the one with the highest activation
# times gradient of the right answer. `null` takes features of permuted bridges, and `class means`
# swaps mean codes.

# %% [markdown]
# **Answer.** They find the bridges in part, and the model uses little of what they find. At the end
# of training the best feature of a bridge has a mean F1 of .49 and .47 in the two SAEs. It is at
# least .5 for 44 and 49 of 90 bridges. At step 500 the mean is .06 and .04, and in the untrained
# model .02 and .01. But .16 [.10, .25] and .22 [.15, .31] of the answers follow a swap of these
# features, where .97 follow a swap of mean codes in the same states. The output of the SAEs
# recovers all of the cross-entropy. So the code that is used is in their output, and not in one
# feature for each bridge. k-means is better than the SAEs in both respects (F1 .76, follow .80).
# The features of the transcoders do not stand for bridges (.08, .07). They read the state before
# the MLP. In [another run](../../results/transcoders_vs_saes/README.md), too, what features stand
# for depends on the side that is read.
#
# **Caveat.** A dictionary shows what can be read from states, as a probe does. Use must be tested.
# F1 alone says little: the frozen decoder reaches .41. Its encoder is trained, but its directions
# are random, and no answer follows its features. What was not found here may be there: this is one
# run, one site, one width and one sparsity, and 600 steps of training, none of them tuned. In
# [three worlds](../../results/feature_birth/README.md) .44, .59 and .70 of the bridges
# had a feature with an F1 of .5 or more, and .19, .29 and .18 of the answers followed.
