# %% [markdown]
# # Which parts did it?
#
# **Question.** A transformer answers chains of two facts. Which of its heads, MLPs and neurons
# compute the answer? Two quick methods, direct logit attribution and attribution patching, need one
# or two passes. Do they find the parts that the answer needs?
#
# We ask this of the trained model of [tutorial 1](1_watch_a_transformer_grok.md). With that run,
# this tutorial takes about a minute on two cores.

# %%
import jax

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training import train

changes = {}

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.training.tiny import TINY

    changes = TINY

# %%
config = apply_overrides(load_config("composition:pocket"), changes)
run = train(config, "runs/tutorials/grok")  # a finished run is only opened
model, last = run.model, run.steps[-1]
params = jax.tree.map(lambda leaf: leaf[0], run.params([last]))

# %% [markdown]
# ## Pairs of prompts
#
# A *clean* prompt is a training chain `(e1, r1, r2)`. Its *corrupt* prompt has another first fact
# and the same `r2`, so the bridge `e2` and the answer differ. The number to explain is the *logit
# difference*: the logit of the clean answer minus that of the corrupt answer. We keep pairs of
# which both prompts are answered correctly.

# %%
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.patching.pairs import bridge_pairs
from implicit_reasoning.model.hooks import Hooked

found = bridge_pairs(run.dataset)
hooked = Hooked(model, params)
right = [
    np.asarray(hooked(jnp.asarray(prompt))[:, -1].argmax(-1)) == answer
    for prompt, answer in ((found.clean, found.answer), (found.corrupt, found.corrupt_answer))
]
kept = (found.group == 0) & right[0] & right[1]

# %% tags=["smoke"]
if os.environ.get("TUTORIAL_SIZE") == "smoke":
    kept = found.group == 0

# %%
clean, corrupt = jnp.asarray(found.clean[kept]), jnp.asarray(found.corrupt[kept])
answer, other = found.answer[kept], found.corrupt_answer[kept]
bridges, rows = found.clusters[kept], np.arange(kept.sum())


def logit_difference(logits):
    return logits[rows, -1, answer] - logits[rows, -1, other]


logits, cache = hooked.run_with_cache(clean)
corrupt_logits, corrupt_cache = hooked.run_with_cache(corrupt)
start, end = logit_difference(logits).mean(), logit_difference(corrupt_logits).mean()
print(f"{len(rows)} pairs, {len(np.unique(bridges))} bridges")
print(f"logit difference: clean {start:.1f}, corrupt {end:.1f}")

# %% [markdown]
# ## 1. What is written into the answer: direct logit attribution
#
# The last state is a sum of what the embeddings, the heads and the MLPs wrote. The unembedding is
# linear, so the logit difference is a sum as well (with the scale of the final norm held fixed).

# %%
heads, head_names = cache.stack_head_results(pos_slice=-1, return_labels=True)
mlps, mlp_names = cache.decompose_resid(
    mode="mlp", incl_embeds=False, pos_slice=-1, return_labels=True
)
names = [*head_names, *mlp_names]
written = cache.logit_attrs(jnp.concatenate([heads, mlps]), answer, other, pos_slice=-1).mean(-1)
total = cache.logit_attrs(cache["resid_post", -1][None, :, -1], answer, other, pos_slice=-1).mean()
for place in np.argsort(-np.abs(written))[:4]:
    print(f"{names[place]:10s} {written[place]:6.2f}")
print(f"all parts  {total:6.2f}")

# %% [markdown]
# ## 2. What is needed: exact patches
#
# An exact patch takes the output of one head or MLP from the corrupt run, at all positions, and
# inserts it into the clean run. The fall of the logit difference is the effect of the part. This
# needs one forward pass for each part. A *mean ablation* inserts the mean output over the clean
# prompts instead, which removes all of what the part says about the prompt.

# %%
from implicit_reasoning.model import Edit

depth, n_heads = model.spec.depth, model.spec.n_heads
z_sites = [f"blocks.{block}.attn.hook_z" for block in range(depth)]
mlp_sites = [f"blocks.{block}.hook_mlp_out" for block in range(depth)]


def put(value, hooks, args):
    donor, chosen = args
    return jnp.where(chosen, donor, value)


@jax.jit
def effects(donor):
    """Return the fall of the logit difference for each head and each MLP."""

    def effect(site, chosen):
        edits = {site: Edit(put, (donor[site], chosen))}
        return logit_difference(logits) - logit_difference(
            model.forward(params, clean, edits=edits)[0]
        )

    each_head = jnp.eye(n_heads, dtype=bool)[:, None, None, :, None]  # [head, prompt, pos, head, 1]
    of_heads = [jax.vmap(lambda chosen, s=site: effect(s, chosen))(each_head) for site in z_sites]
    of_mlps = [effect(site, True)[None] for site in mlp_sites]
    return jnp.concatenate([*of_heads, *of_mlps])


means = {
    site: jnp.broadcast_to(cache[site].mean(0), cache[site].shape)
    for site in (*z_sites, *mlp_sites)
}
exact = effects({site: corrupt_cache[site] for site in means})
ablated = effects(means)

# %% [markdown]
# ## 3. What gradients say: attribution patching
#
# The derivative of the logit difference with respect to the output of a part, times the change of
# this output between the two runs, estimates the exact effect. One backward pass gives the
# estimates of all parts.

# %%
from implicit_reasoning.model.gradients import site_gradients


@jax.jit
def estimates(params):
    def forward(**given):
        return model.forward(params, clean, **given)

    found = site_gradients(forward, logit_difference, (*z_sites, *mlp_sites))
    changes = {
        site: -(found.gradients[site] * (corrupt_cache[site] - cache[site])) for site in means
    }
    of_heads = [jnp.moveaxis(changes[site].sum((1, 3)), -1, 0) for site in z_sites]
    return jnp.concatenate([*of_heads, *(changes[site].sum((1, 2))[None] for site in mlp_sites)])


estimated = estimates(params)

# %% alt="Direct part, exact effect, mean ablation and gradient estimate of every head and MLP"
import matplotlib.pyplot as plt

from implicit_reasoning.figures import BLUE, GREEN, GREY, VERMILION
from implicit_reasoning.statistics import clustered_interval

shown = {
    "written directly": (np.asarray(written), GREY),
    "exact patch": (np.asarray(exact.mean(1)), BLUE),
    "mean ablation": (np.asarray(ablated.mean(1)), GREEN),
    "attribution patching": (np.asarray(estimated.mean(1)), VERMILION),
}
figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
places = np.arange(len(names))
for shift, (label, (values, color)) in zip((-0.3, -0.1, 0.1, 0.3), shown.items(), strict=True):
    ax.bar(places + shift, values, 0.2, color=color, label=label)
intervals = [clustered_interval(np.asarray(row), bridges) for row in exact]
low, high = (np.array([getattr(one, name) for one in intervals]) for name in ("low", "high"))
ax.vlines(places - 0.1, low, high, color="black", linewidth=1)
ax.axhline(float(start - end), color="black", linestyle=":", label="whole difference of the runs")
ax.axhline(0, color="black", linewidth=0.6)
ax.set(xticks=places, ylabel="part of the logit difference")
ax.set_xticklabels(names, rotation=45)
figure.legend(loc="outside right upper", frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# *How to read it.* A group of bars is one head (`L0H1`: block 0, head 1) or one MLP. Bars are means
# over pairs. The black lines are 95% intervals of the exact effect, clustered by bridge. The dotted
# line is what all parts together have to explain.

# %%
from scipy.stats import spearmanr

for label in ("written directly", "attribution patching"):
    rank = spearmanr(shown[label][0], shown["exact patch"][0])[0]
    print(f"rank correlation with exact patches, {label}: {rank:.2f} ({len(names)} parts)")

# %% [markdown]
# The direct parts are nearly all those of the last MLP. The exact effects say more: the first MLP
# and the heads of block 0 write almost nothing into the answer, and the answer needs them. They
# compute the state at `r1` that later parts read.
#
# The gradient misses the same parts. Its estimate for the heads of block 0 is about 0, where the
# exact effect is about 10, and for the first MLP it is 8 instead of 38. A derivative describes a
# small step. To exchange a whole head or MLP is a large step, and the norms, the softmax and the
# activation function of the model are not linear.
#
# ## 4. Neurons
#
# The same for every neuron: an exact patch of one neuron at all positions, and its estimate from
# one backward pass. We use the first 32 pairs.

# %%
n_pairs, d_mlp = min(32, len(rows)), model.spec.d_mlp
few, few_rows = clean[:n_pairs], np.arange(n_pairs)
post_sites = [f"blocks.{block}.mlp.hook_post" for block in range(depth)]
base = {site: cache[site][:n_pairs] for site in post_sites}
donor = {site: corrupt_cache[site][:n_pairs] for site in post_sites}


def difference_of_few(logits):
    at = logits[:, -1]
    return at[few_rows, answer[:n_pairs]] - at[few_rows, other[:n_pairs]]


def patched(chosen):
    """Return the logit difference if the chosen neurons [block, neuron] are patched together."""
    edits = {s: Edit(put, (donor[s], chosen[block])) for block, s in enumerate(post_sites)}
    return difference_of_few(model.forward(params, few, edits=edits)[0]).mean()


@jax.jit
def of_neurons(params):
    """Return the exact effect and the estimate of each neuron, [block * neuron]."""
    one_each = jnp.arange(depth * d_mlp)
    before = difference_of_few(logits[:n_pairs]).mean()
    exact = before - jax.lax.map(
        lambda neuron: patched((one_each == neuron).reshape(depth, d_mlp)), one_each
    )

    def forward(**given):
        return model.forward(params, few, **given)

    gradients = site_gradients(forward, difference_of_few, post_sites).gradients
    estimate = [-(gradients[s] * (donor[s] - base[s])).sum(1).mean(0) for s in post_sites]
    return exact, jnp.concatenate(estimate)


exact_neurons, estimated_neurons = map(np.asarray, of_neurons(params))
rank = spearmanr(estimated_neurons, exact_neurons)[0]
print(f"rank correlation of estimate and exact effect: {rank:.2f} ({depth * d_mlp} neurons)")
everything = jax.jit(lambda: patched(jnp.ones((depth, d_mlp), bool)))()
before = difference_of_few(logits[:n_pairs]).mean()
print(f"sum over neurons: exact {exact_neurons.sum():.1f}, estimated {estimated_neurons.sum():.1f}")
print(f"all neurons together: {before - everything:.1f}")

# %% [markdown]
# How many neurons does the answer need? We sort them by their exact effect, by their estimate, or
# at random, and patch the first ones together.

# %% alt="Left: estimated against exact effect of every neuron. Right: joint patches of the first k"
counts = [0, *(2**power for power in range(int(np.log2(depth * d_mlp)) + 1))]
random_order = np.random.default_rng(0).permutation(depth * d_mlp)
orders = {
    "by exact effect": (np.argsort(-exact_neurons), BLUE),
    "by attribution patching": (np.argsort(-estimated_neurons), VERMILION),
    "random (null)": (random_order, GREY),
}
together = jax.jit(
    jax.vmap(lambda ranks, count: patched((ranks < count).reshape(depth, d_mlp)), (None, 0))
)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for block, color in zip(range(depth), (BLUE, VERMILION), strict=False):
    part = slice(block * d_mlp, (block + 1) * d_mlp)
    axes[0].scatter(
        exact_neurons[part], estimated_neurons[part], s=6, color=color, label=f"block {block}"
    )
axes[0].axline((0, 0), slope=1, color="black", linewidth=0.6)
axes[0].set(xlabel="exact effect of one neuron", ylabel="attribution patching")
axes[0].legend(frameon=False, fontsize=8)
curves = {}
for label, (order, color) in orders.items():
    curves[label] = np.asarray(together(np.argsort(order), np.array(counts)))
    axes[1].plot(counts, curves[label], color=color, marker=".", label=label)
axes[1].axhline(0, color="black", linewidth=0.6)
axes[1].set_xscale("symlog", linthresh=1)
axes[1].set_xlim(left=0)
axes[1].set(xlabel="neurons patched together", ylabel="logit difference")
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# *How to read it.* Left: a point is one neuron; on the line, estimate and exact effect are equal.
# Right: the logit difference after the first k neurons of an order are patched together. Below 0,
# the corrupt answer wins. The gray curve is the null, neurons in random order.

# %%
for label, values in curves.items():
    below = [count for count, value in zip(counts, values, strict=True) if value < 0]
    print(f"{label}: the corrupt answer wins from {below[0] if below else 'no'} neurons on")

# %% [markdown]
# For single neurons, the gradient ranks as the exact patch does: the step is small. In both orders,
# the corrupt answer wins from 512 neurons on (powers of two were tried), and in random order from
# 1,024 on. No small set of neurons holds the answers of these chains.

# %% [markdown]
# ## 5. Which head moves the bridge?
#
# A head that is needed can move the bridge, or something else. The instrument `head_moves` compares
# the vectors that a head adds at a later position with the mean vectors of each variable, over
# facts that were held out. The null has shuffled values.

# %%
from implicit_reasoning.analysis import analyze, find_instrument

result = analyze(run, "head_moves", steps=[last]).isel(step=-1)
at = result.sel(route="r1->r2").isel(group=0)
print("attention from r2 to r1 and share of facts whose bridge the vector identifies:")
for block in result.block.values:
    for head in result["head"].values:
        here = at.sel(block=block, head=head, variable="e2")
        shares = [float(here.identified.sel(truth=truth)) for truth in ("true", "shuffled")]
        print(f"  a{block}.h{head}: {float(here.mass):.2f}, {shares[0]:.2f} (null {shares[1]:.2f})")
for claim in sorted(find_instrument("head_moves").claims(result)):
    print(claim)

# %% [markdown]
# All heads of block 1 attend from `r2` to `r1`, and the vectors that they add there identify the
# bridge of held-out facts. The claims are about `cluster`, not about `e2`: facts that begin no
# training chain do not have this code, so [training chains set it](../concepts/claims.md), and not
# the single fact alone. Head 2, whose exact effect is the largest in block 1, also moves `e1`.
#
# ## Answer
#
# - The exact effects fit two hops. The heads and the MLP of block 0 compute a code of the bridge at
#   `r1`. The heads of block 1 move it to `r2`, and the last MLP writes the answer.
# - Direct logit attribution finds the last of these parts. Attribution patching ranks single
#   neurons well and misses whole parts of the first block.
# - The answer is spread over hundreds of neurons of both MLPs.
#
# ## Caveats
#
# - This is one run. [The study](../../results/components/README.md) measures more runs, over
#   training, with the rules that decide what is claimed.
# - A patch from one other prompt, a mean and a zero ask different questions. The instrument
#   `ablation` has all of them in one table, with the output for another prompt with the same answer
#   as the null.
# - A part without an effect may still take part, if another part does the same. The curve of joint
#   patches shows this for neurons; the cumulative curves of `ablation` show it for heads.
# - On models of this size, exact patches are cheap, so use them. The instrument `attribution`
#   compares several estimates from gradients with exact patches, at every checkpoint.
