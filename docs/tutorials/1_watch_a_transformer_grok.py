# %% [markdown]
# # Watch a transformer grok
#
# **Question.** A transformer is trained on single facts and on chains of two facts. When does it
# answer chains that it has never seen, and does it then compose facts?
#
# You need no checkout for this tutorial, only the package. On two cores that do nothing else,
# training takes [about 3 minutes](../../results/pocket/README.md) and the rest about one minute. If
# you stop the training, the same cell continues it.
#
# ## The world
#
# A [world](../concepts/worlds.md) is a table of facts `(e1, r1) -> e2`. A chain follows two facts:
# the question `(e1, r1, r2)` has the answer `e3`, because `(e1, r1) -> e2` and `(e2, r2) -> e3` are
# facts. The entity `e2` is the *bridge*. It is not in the question.
#
# `composition` is the name of a configuration and `pocket` its smallest scale.

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.worlds import build
from implicit_reasoning.worlds.summary import describe

changes = {}  # such as {"steps": 3000, "model.d_model": 128}

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.training.tiny import TINY

    changes = TINY

# %%
config = apply_overrides(load_config("composition:pocket"), changes)
dataset = build(config.task)
print(describe(dataset))

# %% [markdown]
# The vocabulary has a token for each of the 100 entities and 10 relations, and nothing else. All
# facts are trained on as single facts. `I` facts are also used in training chains, and `O` facts
# are not. The two letters of a split are these roles of a chain's two facts. A chain of `test_ii`
# is a new combination of facts that other chains use. The first fact of a chain of `test_oi` is
# used by no training chain.
#
# A *probe* is a row that is evaluated. The next cell prints a probe of `test_ii`, and training rows
# that share a fact with it.

# %%
import numpy as np

vocab, tokens, truth = dataset.vocab, dataset.tokens, dataset.truth
row = dataset.probes("test_ii")[0]
last = truth["position"]  # the position at which the answer is predicted


def show(row):
    prompt = " ".join(vocab[token] for token in tokens[row, : last[row] + 1])
    split = dataset.splits[dataset.split[row]]
    print(f"{split:11s} {prompt} -> {vocab[truth['answer'][row]]}")


show(row)
print("bridge:", vocab[truth["e2"][row]])
print("\nthe two facts, which are trained on:")
for fact in (truth["fact1"][row], truth["fact2"][row]):
    show(np.flatnonzero((truth["fact1"] == fact) & (truth["fact2"] < 0))[0])
print("\nsome training chains with the same first fact, and with the same second fact:")
train_ii = dataset.rows("train_ii")
for fact in ("fact1", "fact2"):
    for other in train_ii[truth[fact][train_ii] == truth[fact][row]][:2]:
        show(other)

# %% [markdown]
# ## Train
#
# `train` writes a [run directory](../concepts/run-directory.md) with checkpoints and metrics, and
# returns it opened. A progress bar shows loss and accuracy. The model is a GPT-2 with two blocks.

# %%
from implicit_reasoning.training import run_phases, train

run = train(config, "runs/tutorials/grok")
found = run_phases(run)
found.describe()

# %% [markdown]
# The phases are:
#
# - *memorised*: the accuracy on `train_ii` is .99 or more;
# - *in distribution*: the accuracy on `test_ii` is .95 or more (half: .5 or more);
# - *cross distribution*: from this step on, the 95% interval of `test_oi` is above the intervals of
#   all shortcuts.
#
# The first two begin at the first of three evaluations in a row that meet the criterion. The *lag*
# is the number of steps from memorised to in distribution. What is the accuracy at these steps?

# %%
evaluated = {row["step"]: row for row in run.metrics if "accuracy/train_ii" in row}
print(f"{'step':>6s}  train_ii  test_ii  test_oi")
for step in (found.memorised, found.in_distribution, run.steps[-1]):
    if step is not None:
        values = [
            evaluated[step][f"accuracy/{split}"] for split in ("train_ii", "test_ii", "test_oi")
        ]
        print(f"{step:6d}  {values[0]:8.3f}  {values[1]:7.3f}  {values[2]:7.3f}")

# %% [markdown]
# ## Memorize first, generalize later
#
# The last table that `describe` printed is about [shortcuts](../concepts/worlds.md#shortcuts). A
# shortcut answers a test chain from training chains alone, without any single fact. Row completion,
# for example, looks for prefixes `(e1, r1)` whose training chains have the same answers as those of
# the asked prefix, and takes their answer for `r2`. Accuracy is evidence of composition only above
# the best shortcut.

# %% alt="Accuracy on each split over training, with the best shortcuts"
import matplotlib.pyplot as plt

from implicit_reasoning.figures import split_style
from implicit_reasoning.worlds import shortcuts

steps = list(evaluated)
rules = shortcuts(dataset)

fig, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for split in ("id_triples", "train_ii", "test_ii", "test_oi", "test_io"):
    curve = [row[f"accuracy/{split}"] for row in evaluated.values()]
    ax.plot(steps, curve, label=split, **split_style(split))
for split in ("test_ii", "test_oi"):
    rule = max(rules, key=lambda rule: rules[rule][split])
    ax.axhline(
        rules[rule][split],
        label=f"best shortcut on {split}: {rule.replace('_', ' ')}",
        color=split_style(split)["color"],
        linestyle="-.",
        linewidth=1,
    )
ax.set(xlabel="training step", ylabel="accuracy on probe rows", ylim=(-0.02, 1.02))
fig.legend(loc="outside right upper", frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# *How to read it.* Each line is the accuracy on one split over training. Dashed and dotted lines
# are splits that the model is trained on. Solid lines are never trained on. Horizontal dash-dotted
# lines are the accuracies of the best shortcut, in the color of the split: 1.000 for `test_ii`,
# .036 for `test_oi`.
#
# The blue line rises after the dashed one. But it stays below its shortcut, so it is no evidence of
# composition. The vermilion line rises far above its shortcut.

# %% [markdown]
# ## Which answers does no shortcut give?
#
# A split may mix chains that a shortcut answers and chains that none answers. We ask the trained
# model all test chains, and count the two kinds separately. `run.params` returns the parameters of
# checkpoints, stacked along the first axis, and `run.model.forward` is a pure function of them.
#
# Chains through the same bridge are not independent. Intervals are therefore
# [clustered](../concepts/statistics.md) by bridge.

# %%
import jax

from implicit_reasoning.statistics import clustered_interval
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.shortcuts import shortcut_correctness

params = jax.tree.map(lambda leaf: leaf[0], run.params([run.steps[-1]]))
splits = ("test_ii", "test_oi", "test_io")
asked = np.concatenate([dataset.probes(split) for split in splits])
logits, _ = jax.jit(run.model.forward)(params, tokens[asked])
answers = np.asarray(logits).argmax(-1)[np.arange(len(asked)), last[asked]]

right = answers == truth["answer"][asked]
by_rule = shortcut_correctness(dataset, splits)
by_shortcut = np.any([np.concatenate([rule[s] for s in splits]) for rule in by_rule.values()], 0)
split_of = np.array(dataset.splits)[dataset.split[asked]]


def accuracy(chosen):
    if not chosen.any():
        return "-"
    found = clustered_interval(right[chosen], clusters_of(dataset, asked[chosen]))
    interval = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return f"{interval}, {found.n_examples} chains, {found.n_clusters} bridges"


for split in splits:
    print(split)
    for answered in (True, False):
        kind = "a shortcut is right" if answered else "no shortcut is right"
        print(f"  {kind:21s}", accuracy((split_of == split) & (by_shortcut == answered)))

# %% [markdown]
# ## Where does the bridge appear?
#
# An *instrument* measures all checkpoints in one compiled program. `lens` is the logit lens: it
# unembeds a state and asks for the rank of the bridge. `S[l, r1]` is the residual stream after `l`
# blocks at the position of `r1`, where the bridge is first determined. In TransformerLens's names
# it is `blocks.{l-1}.hook_resid_post`.

# %%
from implicit_reasoning.analysis import analyze

wanted = {0, 250, 500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, run.steps[-1]}
result = analyze(run, "lens", steps=[step for step in run.steps if step in wanted])
print(result.attrs["definition"])

# %% alt="Share of prompts whose bridge has the highest logit at r1, over training"
from implicit_reasoning.figures import BLACK, BLUE, GREY, SKY

bridge = result.sel(
    norm="final norm", vocabulary="all tokens", variable="e2", pos="r1", group="test_ii"
)
fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for layer, color in ((1, BLUE), (2, SKY)):
    of_layer = bridge.sel(layer=layer, truth="true")
    ax.plot(
        result.step, of_layer.top1, "o-", color=color, label=f"bridge is top-1 at S[{layer}, r1]"
    )
    ax.fill_between(result.step, of_layer.top1_low, of_layer.top1_high, color=color, alpha=0.2)
null = bridge.sel(truth="shuffled").top1.max("layer")
ax.plot(result.step, null, "--", color=GREY, label="bridge of another prompt (null)")
curve = [row["accuracy/test_ii"] for row in evaluated.values()]
ax.plot(steps, curve, color=BLACK, linewidth=1, label="accuracy on test_ii")
ax.set(xlabel="training step", ylabel="share of test_ii", ylim=(-0.02, 1.02))
fig.legend(loc="outside right upper", frameon=False, fontsize=9)
plt.show()
print(f"{int(bridge.n_states)} bridges; the intervals are clustered by bridge\n")
print("  step  S[1, r1]  S[2, r1]  accuracy on test_ii")
for step in result.step.values:
    one, two = (float(bridge.top1.sel(step=step, layer=n, truth="true")) for n in (1, 2))
    print(f"{step:6d}  {one:8.2f}  {two:8.2f}  {evaluated[step]['accuracy/test_ii']:19.2f}")

# %% [markdown]
# *How to read it.* The blue lines are the shares of prompts at whose position `r1` the unembedding
# reads the bridge first among all 110 tokens, after one block and after two. Bands are 95%
# intervals. The dashed line is the same for the bridge of another prompt, at the better layer.
#
# The bridge can be read long before the chains are answered: at step 1,000 from .76 of the states
# after the first block, when .34 of the chains are answered. After the last block this must be so.
# The state at `r1` then predicts the answer to the single fact `(e1, r1)`, which is trained on.

# %% [markdown]
# **Answer.** The model answers .735 of the unseen chains of `test_ii` when it has memorized the
# training chains (step 2,350), and .95 of them only 2,300 steps later. These answers do not show
# that it composes: row completion, which uses no single fact, answers all 1,805 of them, and no
# chain is left that no shortcut answers. `test_oi` has 444 chains that no shortcut answers. The
# model answers .24 [.16, .34] of them at the end, so some composition has been learned for first
# facts that no training chain uses. For second facts of this kind (`test_io`) it has not: .01
# [.00, .07].
#
# **Caveat.** This is one run in one world: a curve, no claim about training.
# [Three runs](../../results/pocket/README.md) agree with it. The intervals of `test_oi` are wide,
# because only 36 bridges are independent. "No shortcut" means none of the five rules in the table
# above. The logit lens shows that the bridge is there, not that it is used:
# [tutorial 2](2_decodable_or_used.md) asks whether it is. `pocket` is a scale for trying things. At
# `desk` the lag is [10,250 steps](../../results/desk/README.md).
