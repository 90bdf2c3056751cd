# %% [markdown]
# # Your own world and instrument
#
# **Question.** You have a question that no built-in world asks and a measurement that no built-in
# instrument makes. How do you add both without changing the package? And how do you find out
# whether the measurement tells the truth?
#
# The example: some entities are popular, so many facts lead to them, and others are rare. Is a
# chain through a rare bridge answered like a chain through a popular one? And does the state at
# `r1` carry the bridge, and nothing else that the answer needs?

# %% [markdown]
# ## One file with both
#
# A task and an instrument live in a file of your own, and the package finds them by the import path
# `file.py:name`. Nothing has to be registered. The next cells write such a file in two parts.
#
# The first part is the world. `get_config` makes the configuration: it starts from `composition`
# and replaces the group `task`. `popularity` is the task, a function from its settings to a
# dataset. All facts are taught, and most of the chains of two facts.

# %%
world = """
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.config import load_config
from implicit_reasoning.worlds import (
    assemble,
    enumerate_chains,
    position_names,
    rows_from_chains,
    stream,
    vocabulary,
    world_from_table,
)


def get_config(scale="pocket"):
    config = load_config(f"composition:{scale}").unlock()
    config.task = ConfigDict()
    config.task.name = f"{Path(__file__).resolve()}:popularity"
    config.task.world_seed = 0
    config.task.n_entities = 60
    config.task.n_relations = 6
    config.task.popularity = 3.0  # facts that lead to a popular entity, for each to a rare one
    config.task.holdout = 0.12  # fraction of the chains that are not trained on
    config.task.probes = 400
    return config


def popularity(task):
    n = task.n_entities
    random = stream(task.world_seed, 100)  # numbers below 100 are the package's
    popular = np.arange(n) < n // 2  # the first half
    weight = np.where(popular, task.popularity, 1.0)
    tails = random.choice(n, size=(n, task.n_relations), p=weight / weight.sum())
    world = world_from_table(tails, role=0, seed=task.world_seed)  # every fact has the role I
    facts = enumerate_chains(world, 1).shuffled(random)
    chains = enumerate_chains(world, 2).shuffled(random)
    held_out = np.arange(len(chains)) < task.holdout * len(chains)
    through_popular = popular[chains.entities[:, 1]]
    trained, tested = {"facts": rows_from_chains(facts)}, {}
    for name, which in (("popular", through_popular), ("rare", ~through_popular)):
        trained[f"train_{name}"] = rows_from_chains(chains[which & ~held_out])
        tested[f"test_{name}"] = rows_from_chains(chains[which & held_out])
    return assemble(
        trained,
        tested,
        vocab=vocabulary(world),
        positions=position_names(2),
        probes=task.probes,
        world=world,
    )
"""

# %% [markdown]
# The second part is the instrument. It replaces the state `S[layer, r1]` (the residual stream after
# `layer` blocks at the position of `r1`) by the state after *another* fact with the *same* tail. If
# the state carries the bridge, and the answer needs nothing else of it, the answer stays.
#
# That alone shows nothing, because an answer also stays where no later layer reads the state. So
# the control takes a fact with *another* tail: the answer must change. `claims` needs both. Its
# thresholds are fixed now, before anything is measured: .8 and .2 for the ends of the intervals,
# and at least 20 bridges.

# %%
instrument = """
import jax
import jax.numpy as jnp

from implicit_reasoning.analysis import Claim, Examples, Instrument
from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.model import Edit, add
from implicit_reasoning.worlds.clusters import clusters_of


class SameBridge(Instrument):
    name = "same_bridge"
    definition = (
        "Fraction of correct answers that stay correct when S[layer, r1] is replaced by the state "
        "of another fact: one with the same tail, or, as the control, one with another tail."
    )
    outputs = {"stays": ("donor", "layer", "example"), "clean": ("example",)}
    given = {"stays": "clean"}  # count only examples that are answered correctly when clean
    nulls = {"a fact with another tail": {"donor": "another bridge"}}

    def examples(self, model, dataset):
        rows, group = choose_rows(dataset, splits := chain_splits(dataset), 400)
        facts, bridge = dataset.world.facts, dataset.bridge[rows][:, None]
        own = np.arange(len(facts.tail)) == dataset.truth["fact1"][rows][:, None]
        same = (facts.tail == bridge) & ~own & self.allowed(dataset, rows)
        donors = {"same": same, "another": facts.tail != bridge}  # [row, fact]
        there = np.all([which.any(1) for which in donors.values()], axis=0)
        rows, group = rows[there], group[there]  # some questions have no donor
        tokens, random = prompts(dataset, rows), np.random.default_rng(0)
        inputs = {"tokens": tokens, "answer": dataset.truth["answer"][rows]}
        for name, which in donors.items():
            fact = (random.random(which.shape) * which)[there].argmax(1)
            first, r1 = facts.head[fact], dataset.world.n_entities + facts.relation[fact]
            inputs[name] = np.stack([first, r1, tokens[:, 2]], axis=1)
        coords = {"donor": ("same bridge", "another bridge")}
        return Examples(inputs, splits, group, clusters_of(dataset, rows), coords=coords)

    def allowed(self, dataset, rows):
        return True

    def measure(self, model, params, inputs, key):
        sites = model.resid_sites
        whole, states = model.forward(params, inputs["tokens"], sites=sites)
        prefixes = jnp.stack([inputs["same"], inputs["another"]])
        donors = jax.vmap(lambda tokens: model.forward(params, tokens, sites=sites)[1])(prefixes)
        at_r1 = jnp.array([0, 1, 0])[None, :, None]

        def correct(logits):
            return logits[:, 2].argmax(-1) == inputs["answer"]

        def stays(site, donor):
            edit = Edit(add, at_r1 * (donor - states[site]))
            return correct(model.forward(params, inputs["tokens"], edits={site: edit})[0])

        grid = [jax.vmap(lambda donor, s=site: stays(s, donor))(donors[site]) for site in sites]
        return {"stays": jnp.stack(grid, axis=1), "clean": correct(whole)}

    def claims(self, result):  # of one checkpoint
        known = result.where(result.stays_n >= 20)
        enough = known.stays_low.sel(donor="same bridge") >= 0.8
        needed = known.stays_high.sel(donor="another bridge") <= 0.2
        layers = (enough & needed).any("group").to_series()
        return {Claim("carried", "e2", layer, "r1") for layer, yes in layers.items() if yes}
"""

# %%
from pathlib import Path

own = Path("runs/tutorials/own/popularity.py")
own.parent.mkdir(parents=True, exist_ok=True)
print(own.write_text(world + instrument), "characters")

# %% [markdown]
# [Write a task](../how-to/task.md) and [Write an instrument](../how-to/instrument.md) explain each
# part.

# %% [markdown]
# ## Train

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training import train

changes = {
    "steps": 4000,
    "batch_size": 128,
    "model.d_model": 128,
    "model.n_heads": 4,
    "model.d_mlp": 512,
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 1.0,
    "evaluation.every": 100,
    "checkpoints.every": 500,
}

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.training.tiny import TINY

    sizes = {"task.n_entities": 12, "task.n_relations": 4}
    changes = {k: v for k, v in TINY.items() if not k.startswith("task.")} | sizes

# %%
config = apply_overrides(load_config(str(own)), changes)
run = train(config, "runs/tutorials/own/run")
print(run.dataset.sizes())

# %% alt="Accuracy on chains through popular and through rare bridges, over training"
import matplotlib.pyplot as plt

colors = {"popular": "#0072B2", "rare": "#D55E00"}
rows = [row for row in run.metrics if "accuracy/test_rare" in row]
steps = [row["step"] for row in rows]
for name, color in colors.items():
    for kind, line in (("train", "--"), ("test", "-")):
        accuracy = [row[f"accuracy/{kind}_{name}"] for row in rows]
        plt.plot(steps, accuracy, line, color=color, label=f"{kind}_{name}")
        print(f"{kind}_{name}: {accuracy[-1]:.2f} at the end")
plt.xlabel("training step")
plt.ylabel("accuracy")
plt.legend()
plt.show()

# %% [markdown]
# How to read it: dashed lines are chains that are trained on, and solid lines are chains that are
# not. The color says whether the bridge is popular or rare. All training chains are memorized. New
# chains are answered later, and those through a rare bridge latest.

# %% [markdown]
# ## Score the instrument against truth
#
# Before we believe what the instrument says of this model, we ask it about models whose mechanism
# we know. They are *planted*: their weights are written by hand, for the facts and the training
# chains of our world.
#
# - `composer`, `hidden_composer` and `idle_copy` compute the answer through the bridge.
# - `memoriser` looks up `(e1, r1, r2)`.
# - `prefix_memoriser` numbers the prefixes `(e1, r1)`, and looks up the number and `r2`.
# - `parallel` composes and looks up.
#
# A seed draws the layers, heads and directions. Seeds from 2000 on are reserved for the final
# score, so we do not use them yet.

# %%
from implicit_reasoning.analysis.truth.known import planted_model
from implicit_reasoning.analysis.truth.score import score

names = ("composer", "hidden_composer", "memoriser", "parallel", "idle_copy", "prefix_memoriser")
seeds, reserved = (1,), (2000,)


def planted(seeds):
    splits = ("train_popular", "train_rare")
    return [planted_model(name, run.dataset, splits, seed) for name in names for seed in seeds]


# %% tags=["smoke"]
if os.environ.get("TUTORIAL_SIZE") == "smoke":
    names, seeds, reserved = ("composer",), (1,), ()

# %%
cache = "runs/tutorials/known"  # trained models are kept here; planted ones need no training
scores = score([f"{own}:SameBridge"], cache=cache, models=planted(seeds))
for row in scores.rows:
    print(f"{row.model:20} {row.verdict:8}", ", ".join(row.claims["false"]))

# %% [markdown]
# How to read it: *right* means that the instrument claims something, and nothing false. *wrong*
# means that at least one claim is false, and the line names it. *silent* means that it claims
# nothing.
#
# The instrument has a control, and still says something false of `prefix_memoriser`, which never
# uses the bridge. Why do the answers of this model survive? A donor with the same bridge has
# another number. But the donor's own chain with this `r2` has the same answer, and 88% of all
# chains are trained on. So the model has usually looked up that chain as well.
#
# ## Correct the instrument
#
# The donor's own chain must not be trained on. Then only a model that goes on from the bridge can
# keep the answer. The class goes into the same file.

# %%
correction = """

class UntrainedDonors(SameBridge):
    name = "untrained_donors"
    definition = SameBridge.definition + " The donor's chain to the answer is not trained on."

    def allowed(self, dataset, rows):
        first, second = dataset.truth["fact1"], dataset.truth["fact2"]
        chains = np.flatnonzero(second[: dataset.n_train] >= 0)
        trained = np.zeros((dataset.world.n_facts,) * 2, bool)
        trained[first[chains], second[chains]] = True
        return ~trained[:, second[rows]].T  # [row, fact]
"""
own.write_text(world + instrument + correction)
chosen = f"{own}:UntrainedDonors"

for models in (planted(seeds), planted(reserved)):
    for row in score([chosen], cache=cache, models=models).rows:
        print(f"{row.model:20} {row.verdict:8}", ", ".join(row.claims["true"]))

# %% [markdown]
# No claim is false now, also with the seed that we did not use before. The instrument speaks about
# every model that computes answers through the bridge, and is silent about the two that do not.
#
# ## Measure the trained model
#
# `analyze` measures every checkpoint in one compiled program, and keeps the result in
# `analysis/untrained_donors.nc` of the run.

# %%
from implicit_reasoning.analysis import analyze, find_instrument

result = analyze(run, chosen)
print(dict(result.stays.sizes))

# %% alt="Share of correct answers that stay correct, over training, by donor and split"
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True, sharey=True)
for ax, group in zip(axes, ("train_popular", "train_rare"), strict=True):
    for donor, color in (("same bridge", "#0072B2"), ("another bridge", "#E69F00")):
        at = result.sel(group=group, donor=donor, layer=1)
        at = at.where(at.stays_n >= 20)
        ax.plot(at.step, at.stays, "o-", color=color, label=donor)
        ax.fill_between(at.step, at.stays_low, at.stays_high, color=color, alpha=0.2, linewidth=0)
    ax.set(title=group, xlabel="training step", ylim=(-0.03, 1.03))
axes[0].set_ylabel("correct answers that stay correct")
axes[0].legend(title="state S[1, r1] from")
plt.show()

# %% [markdown]
# How to read it: blue is the fraction of correct answers that stay correct with the state of
# another fact with the same tail, whose own chain was never trained on. Orange is the control, with
# another tail. The bands are 95% intervals, clustered by bridge. A point is missing where fewer
# than 20 bridges have a correct answer. Where blue is high and orange is low, the state carries the
# bridge and nothing else of it is needed.

# %%
claims = find_instrument(chosen).claims
for step in result.step.values:
    print(step, [str(claim) for claim in sorted(claims(result.sel(step=step)))])

# %%
last = result.isel(step=-1).sel(layer=1)
for group in ("train_popular", "train_rare"):
    for donor in result.donor.values:
        here = last.sel(group=group, donor=donor)
        mean, low, high, n = (float(here[f"stays{end}"]) for end in ("", "_low", "_high", "_n"))
        print(f"{group}, {donor}: {mean:.2f} ({low:.2f} to {high:.2f}), {n:.0f} bridges")

# %% [markdown]
# **Answer.** A function and a class in one file are enough. `train`, `analyze` and `score` find
# them by `file.py:name`. Whether the instrument tells the truth is a question for `score`: the
# first version looked sound and was wrong about a model that looks up what it seems to compute. The
# second makes no false claim about six models with a seed that was not used to develop it.
#
# Of the trained model it says that `S[1, r1]` carries the bridge, and that nothing else of this
# state is needed, from step 2,000 on. The evidence comes from popular bridges. For rare ones the
# last interval begins at .68, below the threshold of .8, so the instrument says nothing about them.
# At the end .99 of the new chains through popular bridges are answered, and .71 of those through
# rare ones.
#
# **Caveat.** This is one run, and a claim about training needs at least eight
# ([Statistics](../concepts/statistics.md#claims-about-training)). Popular bridges differ from rare
# ones in two ways that this world does not separate: more facts lead to them, and so the facts that
# follow them are in more training chains. *Silent* is not evidence for the contrary. And the score
# covers six mechanisms. A mechanism that nobody planted could still deceive the instrument.
