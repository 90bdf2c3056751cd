# %% [markdown]
# # Find the circuit
#
# **Question.** Which connections between heads and MLPs does a transformer need to answer a chain
# of two facts? How few of them are enough? And what does the circuit look like before the model
# answers unseen chains?
#
# [Tutorial 8](8_which_parts_did_it.md) patches whole heads and MLPs. Here we patch *edges*. An edge
# carries the output of one part (the embeddings, a head or an MLP) into the input of one later part
# (the query, key or value of a head, an MLP, or the logits), at one position.
#
# We use the trained model of [tutorial 1](1_watch_a_transformer_grok.md). With that run, this
# tutorial takes about two minutes on two cores.

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
# ## Pairs of prompts that differ in one token
#
# A *clean* prompt is a training chain `(e1, r1, r2)`. In its *corrupt* prompt, e1 is another
# entity, so the answer differs. We ask how the information about e1 gets to the answer. Only edges
# whose sender differs between the two prompts can carry it.
#
# The edges are ranked on the chains of half of the bridges. All circuits are then measured on the
# chains of the other bridges.

# %%
import numpy as np

from implicit_reasoning.analysis.patching.pairs import exchange_pairs
from implicit_reasoning.model.hooks import Hooked

pairs = exchange_pairs("e1", run.dataset)
predicted = np.asarray(Hooked(model, params)(pairs.clean)[:, -1].argmax(-1))
kept = (pairs.group == 0) & (predicted == pairs.answer)

# %% tags=["smoke"]
if os.environ.get("TUTORIAL_SIZE") == "smoke":
    kept = pairs.group == 0

# %%
bridges = np.unique(pairs.clusters[kept])
ranked = kept & np.isin(pairs.clusters, bridges[::2])
measured = kept & np.isin(pairs.clusters, bridges[1::2])
print(f"{ranked.sum()} pairs rank the edges, {measured.sum()} pairs measure the circuits")

# %% [markdown]
# The number to explain is the *logit difference*: the logit of the clean answer minus that of the
# corrupt answer.

# %%
from implicit_reasoning.analysis.circuits import scores


def metric_of(chosen):
    rows, answer, other = (
        np.arange(chosen.sum()),
        pairs.answer[chosen],
        pairs.corrupt_answer[chosen],
    )

    def logit_difference(logits):  # [pair, d_vocab] -> [pair]
        return logits[rows, answer] - logits[rows, other]

    return logit_difference


def runs_of(params, chosen):
    return scores.two_runs(model, params, pairs.clean[chosen], pairs.corrupt[chosen])


# %% [markdown]
# ## Patch every edge
#
# The exact score of an edge is the change of the logit difference when this edge alone carries the
# value of the corrupt run. It is negative if the answer needs the edge. *Edge attribution patching*
# (EAP) estimates all scores from one backward pass.

# %%
from scipy.stats import spearmanr

from implicit_reasoning.model.graph import EdgeGraph

graph = EdgeGraph(model.spec, n_pos=pairs.clean.shape[1])


@jax.jit
def both(params):
    arguments = model, params, graph, runs_of(params, ranked), metric_of(ranked)
    return scores.exact(*arguments).mean(-1), scores.eap(*arguments).mean(-1)


exact, estimated = map(np.asarray, both(params))  # [edge, pos]
print(f"{len(graph.edges)} edges, {graph.alive.sum()} edges and positions that can matter")
for edge, pos in zip(*np.unravel_index(np.argsort(exact, axis=None)[:8], exact.shape), strict=True):
    print(f"{exact[edge, pos]:6.2f}  {graph.edges[edge]!s:15s} at {run.dataset.positions[pos]}")
matter = exact != 0
rank = spearmanr(exact[matter], estimated[matter])[0]
print(f"rank correlation of EAP with the exact scores: {rank:.2f} ({matter.sum()} edges)")

# %% [markdown]
# ## How many edges are enough?
#
# A circuit of n edges is run as follows: its edges carry the values of the clean run, and all other
# edges carry those of the corrupt run. Its *faithfulness* is the share of the logit difference that
# it keeps. Circuits grow from the logits: the next edge is always the one with the largest score
# among those that reach a part of the circuit.

# %%
from implicit_reasoning.analysis.circuits import curves, evaluation, selection

sizes = curves.curve_points(int(graph.alive.sum())).sizes
orders = {
    "exact scores": selection.greedy(graph, exact),
    "EAP": selection.greedy(graph, estimated),
    "random (null)": selection.greedy(graph, np.random.default_rng(0).random(exact.shape)),
}


@jax.jit
def metric_of_circuits(params, circuits):
    runs = runs_of(params, measured)
    return evaluation.circuit_metrics(model, params, graph, runs, metric_of(measured), circuits)


faithful = {}
for name, order in orders.items():
    found = np.asarray(metric_of_circuits(params, selection.nested_circuits(order, sizes)))
    means = found.mean(1)
    faithful[name] = curves.faithfulness(means, means[0], means[-1])
    print(f"{name:14s} {curves.size_at(sizes, faithful[name]):.0f} edges keep .9")

# %% alt="Faithfulness of circuits by number of edges, for exact scores, EAP and random edges"
import matplotlib.pyplot as plt

from implicit_reasoning.figures import BLUE, GREY, VERMILION

figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for (name, values), color in zip(faithful.items(), (BLUE, VERMILION, GREY), strict=True):
    ax.plot(sizes, values, color=color, label=name)
ax.axhline(1, color="black", linewidth=0.6)
ax.set_xscale("symlog", linthresh=1)
ax.set(xlabel="edges in the circuit (log)", ylabel="faithfulness", ylim=(-0.2, 1.3), xlim=(0, None))
figure.legend(loc="outside right upper", frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# *How to read it.* A curve is the mean faithfulness on pairs that did not rank the edges: 0 is the
# corrupt run, and 1 is the clean run.
#
# ## Through r1, or around it
#
# Single edges do not show whether the model composes. A composing model reads e2 at the position of
# r1, so the information about e1 goes through r1. A model that looks up the answer at the last
# position can go around r1. So we cut all edges of one of the two ways at once:
#
# - *around r1*: what heads of the second block read at r1 is that of the corrupt run.
# - *through r1*: what the first block wrote at the last position is that of the corrupt run, and so
#   is what the second block reads at e1.
#
# We do this at checkpoints over training, from the step on at which the model answers a tenth of
# the training chains. The parameters are an argument of the compiled function, so all checkpoints
# use one program.

# %%
from implicit_reasoning.analysis.circuits import routes

r1 = 1  # the position of r1
around, through = routes.around(graph, r1), routes.through(graph, r1)
ways = np.stack([np.zeros_like(around), around, through, np.ones_like(around)])

rows = [row for row in run.metrics if "accuracy/test_ii" in row]
begin = next((row["step"] for row in rows if row["accuracy/train_ii"] >= 0.1), 0)
steps = [step for step in run.steps if step and step >= begin]
steps = steps[:: max(1, len(steps) // 12)]
shares = []
for step in steps:
    at_step = jax.tree.map(lambda leaf: leaf[0], run.params([step]))
    values = np.asarray(metric_of_circuits(at_step, ways)).mean(1)
    shares.append(curves.faithfulness(values[1:3], values[0], values[3]))
around_r1, through_r1 = np.transpose(shares)

# %% alt="Left: faithfulness of the routes around and through r1 over training. Right: accuracies"
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharex=True)
left.plot(steps, through_r1, "o-", color=BLUE, label="through r1")
left.plot(steps, around_r1, "s-", color=VERMILION, label="around r1")
left.axhline(1, color="black", linewidth=0.6)
left.set(ylabel="faithfulness on training chains", xlabel="training step", ylim=(-0.2, 1.3))
left.legend(frameon=False, fontsize=9)
for split, style in (("train_ii", "--"), ("test_ii", "-")):
    values = [row[f"accuracy/{split}"] for row in rows]
    right.plot([row["step"] for row in rows], values, style, color="black", label=split)
right.set(ylabel="accuracy", xlabel="training step", ylim=(-0.02, 1.02))
right.legend(frameon=False, fontsize=9)
plt.show()

# %%
at = {row["step"]: row for row in rows}
for step, around_now, through_now in zip(steps, around_r1, through_r1, strict=True):
    train, test = (at[step][f"accuracy/{split}"] for split in ("train_ii", "test_ii"))
    print(
        f"step {step:5,d}: through r1 {through_now:4.2f}, around r1 {around_now:4.2f}, "
        f"train_ii {train:4.2f}, test_ii {test:4.2f}"
    )

# %% [markdown]
# *How to read it.* Left: the share of the logit difference that is kept if only one of the two ways
# carries e1. Right: the accuracy on training chains and on unseen chains.
#
# ## Answer
#
# - The largest effects are those of a two-hop circuit. Heads of the first block carry e1 to r1, the
#   first MLP reads it there, heads of the second block carry the result to the last position, and
#   the last MLP writes the answer.
# - 47 of 236 edges keep .9 of the logit difference on other bridges. With random edges, all 236 are
#   needed. EAP needs 64.
# - The circuit changes while the model learns. At step 250 the model answers .13 of the training
#   chains and .04 of the unseen ones, and .92 of the logit difference goes around r1. When it has
#   memorized .89 of the training chains (step 750), half goes around r1. At the end, .88 goes
#   through r1. This happens gradually, while the accuracy on unseen chains rises.
#
# ## Caveats
#
# - This is one run, and training chains only. A circuit shows where the information flows. It does
#   not show that the model goes by single facts: [tutorial 7](7_is_it_reasoning.md) asks this.
# - The pairs were chosen by the answers of the last checkpoint.
# - On larger models, exact scores of all edges are expensive. `cost.score_costs` estimates the cost
#   first ([Find a circuit](../how-to/circuits.md)).
# - The instruments `edge_patching` and `circuit_discovery` do the same at every checkpoint, with
#   intervals and null controls, and the report has a page with a slider:
#   `implicit_reasoning analyze --workdir=runs/pocket --pairs=exchange_e1
#   --instruments=edge_patching,circuit_discovery`.
