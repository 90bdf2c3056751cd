# %% [markdown]
# # A sweep and its page
#
# **Question.** Does a larger weight decay make a model generalize sooner? And how much can 3, 8 or
# 16 runs say about that?

# %% [markdown]
# ## Define the trials
#
# The task is `(a + b) mod 23`. The model is trained on 70% of all pairs and asked the others. The
# configuration `modular_addition` follows Nanda et al. 2023.
#
# A *sweep* is one configuration and, for each trial, the fields that differ. Here weight decay has
# two values. For each value there are eight runs: four worlds, each with two initialisations. The
# world seed decides which pairs are trained on. The seed decides the initial weights.

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.sweeps import Runs, grid, make_sweep, run_sweep

changes = {
    "steps": 1600,
    "batch_size": 370,  # all trained pairs
    "task.modulus": 23,
    "task.train_fraction": 0.7,
    "model.d_model": 64,
    "model.d_mlp": 256,
    "model.init_std": 0.125,
    "optimizer.learning_rate": 2e-3,
    "evaluation.every": 50,
    "checkpoints.every": 800,
}
decays, worlds, seeds = (0.5, 2.0), range(4), range(2)

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    tiny = {"steps": 40, "batch_size": 17, "task.modulus": 5, "model.d_model": 8, "model.d_mlp": 8}
    changes |= tiny | {"evaluation.every": 10, "checkpoints.every": 20, "writers.progress": False}
    worlds, seeds = range(2), range(1)

# %%
config = apply_overrides(load_config("modular_addition:pocket"), changes)
trials = grid({"optimizer.weight_decay": decays, "task.world_seed": worlds, "seed": seeds})
sweep = make_sweep(config, list(trials))
print(len(sweep.trials), "trials; populations:", len(sweep.shapes))
print("the first trial:", next(iter(sweep.trials)))

# %% [markdown]
# In a configuration file of your own, the same sweep is a function `sweep_decay()` that yields the
# trials, and the command is `implicit_reasoning sweep --config=FILE --sweep=decay --workdir=DIR`.
#
# ## Train
#
# Trials that differ only in seeds, weight decay, learning rate or phi form a *population*: one
# compiled program trains all of them at once. If you stop this cell, it continues when you run it
# again.

# %%
statuses = run_sweep(sweep, "runs/tutorials/decay")
print({status.state for status in statuses.values()})

# %% [markdown]
# ## Open and plot
#
# `Runs` is a sequence of runs. `runs[0]` opens like any run. A measurement of all of them is one
# labeled array with the dimension `trial`.

# %% alt="Accuracy on test_pairs over training, of 16 runs with two values of weight decay"
import matplotlib.pyplot as plt
import numpy as np

from implicit_reasoning.worlds import shortcuts

runs = Runs("runs/tutorials/decay")
accuracy = runs.metric("accuracy/test_pairs")
print(dict(accuracy.sizes), runs[0].dataset.sizes())

colors = dict(zip(decays, ("#E69F00", "#0072B2"), strict=True))
fields = accuracy["optimizer.weight_decay"]
for decay in decays:
    curves = accuracy[fields == decay]
    plt.plot(accuracy.step, curves.T, color=colors[decay], linewidth=0.6, alpha=0.6)
    label = f"weight decay {decay:g}, median of {len(curves)}"
    plt.plot(accuracy.step, curves.median("trial"), color=colors[decay], linewidth=2.5, label=label)
rule = np.mean([shortcuts(run.dataset)["commuted"]["test_pairs"] for run in runs])
plt.axhline(rule, color="black", linestyle="-.", linewidth=1, label="shortcut: a + b = b + a")
plt.xlabel("training step")
plt.ylabel("accuracy, test_pairs")
plt.legend()
plt.show()

# %% [markdown]
# How to read it: each thin line is one run, and the thick line is the median of the runs with the
# same weight decay. `test_pairs` has the pairs that were not trained on. The dash-dotted line is a
# shortcut that computes nothing: where the model has seen `b + a`, it knows `a + b`. Generalizing
# begins above this line.
#
# ## Time to generalize
#
# `runs.phases()` has the step at which each run reached a phase. *In-distribution* is the first of
# three evaluations in a row with .95 or more on `test_pairs`. A run that did not get there has nan:
# we know only that its time is longer than the training.

# %%
phases = runs.phases().to_dataframe()
index = ["task.world_seed", "seed"]
times = phases.pivot(index=index, columns="optimizer.weight_decay", values="in_distribution")
print(times.to_string())
print("memorised at steps", sorted(set(phases["memorised"])))
print("lowest accuracy at the last step, by weight decay:")
print(accuracy.isel(step=-1).groupby("optimizer.weight_decay").min().to_pandas().to_string())

# %% alt="Fraction of the runs that have not reached .95, over training, by weight decay"
last = int(accuracy.step[-1])
for decay in decays:
    at = accuracy.step.values
    waiting = [(times[decay].fillna(np.inf) > step).mean() for step in at]
    reached = int(times[decay].notna().sum())
    label = f"weight decay {decay:g}: {reached} of {len(times)} got there"
    plt.step(at, waiting, where="post", color=colors[decay], linewidth=2, label=label)
plt.xlabel("training step")
plt.ylabel("fraction of runs not yet at .95")
plt.ylim(-0.03, 1.03)
plt.legend()
plt.show()

# %% [markdown]
# How to read it: a curve falls by one run each time that a run reaches .95 on `test_pairs`. A curve
# that ends above 0 belongs to runs that did not get there within the training.
#
# ## What can n runs say?
#
# Runs with the same world and the same seed differ in weight decay only, so we compare them in
# pairs. If weight decay did not matter, each pair would favor either value with probability 1/2.
# So even if all n pairs agree, a two-sided sign test cannot give less than `2 * (1/2) ** n`.

# %%
from scipy.stats import binomtest

for n in (3, 4, 5, 6, 8, 16):
    print(f"{n:2} of {n:2} agree: p = {binomtest(n, n).pvalue:.2g}")

# %% [markdown]
# Are the eight pairs independent? Not quite: two pairs of one world have the same training pairs.
# So we count twice: pairs, which says something about other initialisations in these four worlds,
# and worlds, which says something about other worlds. A pair in which neither run got there is no
# evidence for either value.

# %%
low, high = (times[decay].fillna(np.inf) for decay in decays)
pairs = (high < low)[high != low]
by_world = pairs.groupby("task.world_seed").mean() > 0.5
for name, sooner in (("pairs", pairs), ("worlds", by_world)):
    k, n = int(sooner.sum()), len(sooner)
    p = binomtest(k, n).pvalue if n else 1.0
    print(f"weight decay {decays[1]:g} is sooner in {k} of {n} {name} that differ: p = {p:.2g}")

# %% [markdown]
# ## The page
#
# The command `sweep` writes a page at its end. It has a table of all trials that can be sorted, the
# curves, the times, and what failed with the reason. From Python:

# %%
from implicit_reasoning.report import write_sweep_report

page = write_sweep_report(runs)
print(page)
for figure in sorted((page.parent / "figures").glob("*.png")):
    print(figure.name)

# %% [markdown]
# **Answer.** In these runs, yes. With weight decay 2, six of eight runs reach .95 within 1,600
# steps, and with 0.5 one of eight does. The larger value is first in all six pairs that differ (p =
# .03). All runs have memorized at step 100, so the difference is in what comes after.
#
# Three runs could not have shown this: even if all agree, p is .25. Eight pairs in four worlds can
# show it for these worlds. They cannot show it for other worlds, because three worlds that differ
# give p = .25, and four would give .125. That takes six worlds or more.
#
# **Caveat.** The page compares two values, at one modulus, one model and one learning rate, so it
# says nothing about a best value. Times of runs that did not get there are unknown, and a longer
# training could decide pairs that do not differ yet. Reaching .95 is not staying there: one run
# with weight decay 2 falls back to .57 at the last evaluation.
