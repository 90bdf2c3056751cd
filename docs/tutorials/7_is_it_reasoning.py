# %% [markdown]
# # Is it reasoning?
#
# **Question.** A transformer answers most chains of two facts that it has never seen. Does it
# compose single facts, or does it follow the evidence that training chains give? Can a different
# loss make it compose?
#
# You need no checkout for this tutorial, only the package. On two cores that do nothing else, each
# of the two trainings takes about 3 minutes. If you stop a training, the same cell continues it.
#
# ## A world that tells the two apart
#
# In [tutorial 1](1_watch_a_transformer_grok.md), a shortcut answers every chain of `test_ii`, so
# `test_ii` cannot show composition. The task [`ladder`](../concepts/worlds.md) has *cold facts*. A
# cold fact `(e1, r1) -> e2` is taught as a single fact, and it begins exactly two training chains.
# Of these two chains, 0, 1 or 2 give evidence about the bridge `e2`: another prefix with the same
# bridge is trained with the same last relation. The splits `test_c0`, `test_c1` and `test_c2` ask
# the other chains of cold facts with 0, 1 and 2 such chains.
#
# The single fact says the same at every rung. Only the evidence from chains differs.

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.worlds import build, shortcuts

changes = {"model.d_model": 128, "model.d_mlp": 512, "steps": 4000, "evaluation.every": 250}

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    changes |= {"model.d_model": 16, "model.d_mlp": 16, "steps": 20, "task.probes": 200}

# %%
config = apply_overrides(load_config("ladder:pocket"), changes)
dataset = build(config.task)

splits = ("test_ii", "test_c2", "test_c1", "test_c0", "test_oi")
print(f"{'accuracy of shortcuts':24s}" + "".join(f"{split:>9s}" for split in splits))
for rule, accuracy in shortcuts(dataset).items():
    print(f"{rule:24s}" + "".join(f"{accuracy[split]:9.2f}" for split in splits))

# %% [markdown]
# Each shortcut answers a chain from training chains alone. `cluster_oracle` even knows which other
# prefixes share a bridge. The shortcuts answer nearly all chains of `test_ii` and `test_c2`, most
# of `test_c1`, and hardly any of `test_c0`. A model that goes by single facts has the same accuracy
# on all of them.
#
# ## Train as usual

# %%
from implicit_reasoning.training import train

run = train(config, "runs/tutorials/ladder")

# %% [markdown]
# We ask the last checkpoint every probe. Chains with the same bridge are not independent, so
# intervals are [clustered](../concepts/statistics.md) by bridge.

# %%
import numpy as np

from implicit_reasoning.analysis.truth.by_answers import correct_probes, grounded
from implicit_reasoning.statistics import clustered_interval
from implicit_reasoning.worlds.clusters import clusters_of

probes = np.flatnonzero(dataset.probe)


def ask(run):
    [correct] = correct_probes(run, [run.steps[-1]])
    found = {}
    for split in splits:
        rows = dataset.probes(split)
        right = correct[np.searchsorted(probes, rows)]
        found[split] = clustered_interval(right, clusters_of(dataset, rows))
        interval = f"{found[split].mean:.2f} [{found[split].low:.2f}, {found[split].high:.2f}]"
        n = f"{found[split].n_examples} chains, {found[split].n_clusters} bridges"
        print(f"{split:8s} {interval}  {n}")
    verdict = {True: "yes", False: "no", None: "open"}[grounded(dataset, correct).holds]
    print("the answers to test_c0 follow the single facts:", verdict)
    return found


usual = ask(run)

# %% [markdown]
# The rule behind the last line was fixed before any model was trained. The answers follow the
# single facts if the lower end of `test_c0` is at least .05 above the best shortcut, and `test_c0`
# is at least .8 times `test_c2`. It is open if the intervals do not decide.
#
# ## Give the second hop something to read
#
# A model with two blocks learns a single fact by the loss at its *last* layer. The second hop of a
# chain reads the state after the *first* block. Nothing in the loss makes these two states agree.
# [Early supervision](../how-to/training-options.md) reads the answers of single facts also after
# the first block, through the same unembedding. The weight is 6, because about one of six training
# rows is a single fact.

# %%
supervised = apply_overrides(config, {"loss.early_supervision.weight": 6.0})
early_run = train(supervised, "runs/tutorials/ladder_early")
early = ask(early_run)

# %%
import matplotlib.pyplot as plt

from implicit_reasoning.figures import BLUE, GREY, VERMILION

best = {split: max(rule[split] for rule in shortcuts(dataset).values()) for split in splits}
fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
places = np.arange(len(splits))
shown = ((usual, BLUE, "usual loss"), (early, VERMILION, "early supervision"))
for shift, (found, color, label) in zip((-0.12, 0.12), shown, strict=True):
    means = np.array([found[split].mean for split in splits])
    ends = np.array([[found[split].low, found[split].high] for split in splits]).T
    lengths = np.maximum(np.abs(ends - means), 0)
    ax.errorbar(places + shift, means, lengths, fmt="o", color=color, capsize=3, label=label)
floors = [best[split] for split in splits]
ax.plot(places, floors, "_", color=GREY, markersize=34, label="best shortcut")
ax.set(xticks=places, ylabel="accuracy on probe rows", ylim=(-0.02, 1.02))
ax.set_xticklabels(splits)
fig.legend(loc="outside right upper", frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# *How to read it.* A point is the accuracy at the last checkpoint, with its 95% interval. The grey
# lines are the best shortcut on each split. With the usual loss, the accuracy falls with the
# evidence from chains.

# %% [markdown]
# **Answer.** (numbers)
#
# **Caveat.** (caveat)
