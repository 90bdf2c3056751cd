# %% [markdown]
# # Decodable or used?
#
# **Question.** The bridge of a chain can be decoded from a state. Does the model use it?
#
# We ask this first of a model whose mechanism is known, because it was built by hand. Then we ask
# it of the trained model of [tutorial 1](1_watch_a_transformer_grok.md). With that run, this
# tutorial takes about 3 minutes on two cores.
#
# ## A model whose mechanism is known
#
# A *planted model* has weights that are built by hand. The one named `idle_copy` composes: block 0
# looks up the bridge `e2` at the position `r1`, and block 2 moves it to `r2` and looks up the
# answer there. In addition, block 1 copies the bridge to `r2`, into a subspace that no later block
# reads. This copy is a decoy: it can be decoded, and nothing depends on it.

# %%
from implicit_reasoning.analysis.truth.known import planted_model, small_world

world, training = {}, {}  # changes of the world, and of the training below

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.training.tiny import TINY

    world, training = {"n_entities": 24, "out_degree": 5, "phi": 2.5}, TINY

# %%
known = planted_model("idle_copy", small_world(**world), splits=("train_ii",))
for kind in ("decodable", "used", "unused"):
    units = [c.unit for c in known.mechanism.true if (c.kind, c.variable) == (kind, "e2")]
    print(f"e2 is {kind} at", "; ".join(map(str, sorted(units))))

# %% [markdown]
# This is the truth about the model. *Layer* `l` at a position is the residual stream after `l`
# blocks, `S[l, pos]`. Its TransformerLens name is `blocks.{l-1}.hook_resid_post`.
#
# Two instruments test the two properties.
#
# - `probes` fits linear probes. A state depends on its prefix only, so there is one state for each
#   first fact, and the probe is tested on prefixes that were held out.
# - `mean_swap` changes the code of the bridge and nothing else in the state: it adds `mean_b -
#   mean_a`, where `mean_a` is the mean of the states whose bridge is `a`. If the model computes the
#   answer from this code, its answer becomes the one that the world gives for the bridge `b`.
#
# Both have null controls. The probes are also fitted to shuffled bridges. The swap is also done
# with three other codes, after which the answer for `b` is not expected.

# %%
from implicit_reasoning.analysis import find_instrument, measure

probes, swaps = (measure(find_instrument(name), known.subject) for name in ("probes", "mean_swap"))

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from implicit_reasoning.figures import VERMILION
from implicit_reasoning.model.units import State

CONTROLS = ["permuted means", "third value", "another variable"]  # the nulls of mean_swap
ENOUGH = 20  # with fewer clusters, a number says little and is left out


def decoded(probes, end="", group="id", truth="true"):
    """Accuracy of probes for e2 on held-out prefixes; nan where each class has one state."""
    of = probes[f"accuracy{end}"].sel(held_out="prefix", variable="e2", group=group, truth=truth)
    n_classes = probes.n_classes.sel(variable="e2").isel(step=0, drop=True)
    return of.where(probes.n_states.sel(group="id") > n_classes)


def followed(swaps, end="", edit="class means"):
    """Share of answers to held-out chains that follow a swap of e2."""
    here = {"variable": "e2", "group": "test_ii", "edit": edit}
    return swaps[f"counterfactual{end}"].where(swaps.counterfactual_n >= ENOUGH).sel(here)


def draw_cells(ax, values, title):
    """Draw a map of layers and positions; cells without a value are empty."""
    values = values.transpose("layer", "pos")
    ax.imshow(values, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
    for (layer, pos), value in np.ndenumerate(values.values):
        color = "black" if value > 0.5 else "white"
        text = "" if np.isnan(value) else f"{value:.2f}"
        ax.text(pos, layer, text, ha="center", va="center", color=color)
    ax.set_xticks(range(values.sizes["pos"]), values.pos.values)
    ax.set(title=title, xlabel="position", ylabel="layer", yticks=range(values.sizes["layer"]))


def outline(ax, kind, positions):
    """Draw a frame around the cells where a claim of this kind about e2 is true."""
    for claim in known.mechanism.true:
        if (claim.kind, claim.variable) == (kind, "e2") and isinstance(claim.unit, State):
            corner = (positions.index(claim.unit.pos) - 0.5, claim.unit.layer - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=3))


# %% alt="Maps of a planted model: where probes read e2, and where answers follow a swap of e2"
at_r1, at_r2 = (int(probes.n_states.sel(group="id", pos=pos)) for pos in ("r1", "r2"))
n_swapped = int(swaps.counterfactual_n.sel(edit="class means", variable="e2").max())

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharey=True)
draw_cells(axes[0], decoded(probes).isel(step=0), "accuracy of probes for e2")
draw_cells(axes[1], followed(swaps).isel(step=0), "answers that follow a swap of e2")
for ax, kind in zip(axes, ("decodable", "used"), strict=True):
    outline(ax, kind, list(probes.pos.values))
plt.show()
print(f"probes: {at_r1} distinct states at r1, {at_r2} at r2")
null = decoded(probes, truth="shuffled").max()
print(f"highest accuracy of a probe of shuffled bridges: {float(null):.2f}")
null = followed(swaps, edit=CONTROLS).max()
print(f"swaps: up to {n_swapped} bridges; most answers that follow a control: {float(null):.2f}")

# %% [markdown]
# *How to read it.* A cell is a state, in layers from bottom to top. Left: the share of held-out
# prefixes whose bridge a probe reads. Right: the share of answers that become those of another
# bridge after the swap. Red frames show where the bridge is truly decodable (left) and truly used
# (right). At `e1` the bridge is not determined yet, and the cells are empty.
#
# The probes find all seven cells where the bridge is, with .97, and read at most .04
# elsewhere. Two of the seven are used: every answer follows the swap. The cell of layer 2 at `r2`
# is the decoy. The probe reads it as well as the others, and no answer follows its swap. The other
# four cells hold the bridge after its last use. There at most .10 of the answers follow.
#
# ## The trained model
#
# `train` opens the run of tutorial 1 if it is there and complete, and trains it otherwise.

# %%
from implicit_reasoning.analysis import analyze
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training import train

config = apply_overrides(load_config("composition:pocket"), training)
run = train(config, "runs/tutorials/grok")
wanted = {0, 500, 1000, 2000, 3000, 4000, run.steps[-1]}
steps = [step for step in run.steps if step in wanted]

# %% [markdown]
# We add three instruments.
#
# - `lens`, the logit lens of tutorial 1, is a second decoder. It has nothing to fit.
# - `decoding` reads states of the prompt `(e1, r1)` alone. We use its reading `immediate`, which
#   unembeds the state.
# - `cross_query_patching` puts the *whole* state of another question into this question's forward
#   pass. The answer should become that of the composed chain: the bridge of the other question,
#   then the `r2` of this one. Composed chains were never trained on.

# %%
names = ("lens", "probes", "mean_swap", "cross_query_patching")
results = [analyze(run, name, steps=steps).sel(step=steps) for name in names]
lens, probes, swaps, patches = results
decoding = analyze(run, "decoding", steps=[run.steps[-1]])


def patched(end="", expected="true"):
    """Share of answers that become those of the composed chain."""
    here = {"outcome": "counterfactual", "expected": expected, "group": "another bridge"}
    return patches[f"fraction{end}"].where(patches.fraction_n >= ENOUGH).sel(here)


def unembedded(end="", truth="true"):
    """Share of test_ii prompts whose bridge the logit lens reads first among all tokens."""
    of = lens[f"top1{end}"].sel(norm="final norm", vocabulary="all tokens", variable="e2")
    return of.sel(group="test_ii", truth=truth)


# %% [markdown]
# ### At the last checkpoint

# %% alt="Maps of the trained model by layer and position, for lens, probe, swap and patch"
final = {"step": run.steps[-1]}
fig, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained", sharey=True)
draw_cells(axes[0], unembedded().sel(final), "lens reads e2")
draw_cells(axes[1], decoded(probes).sel(final), "probe reads e2")
draw_cells(axes[2], followed(swaps).sel(final), "answer follows swap")
draw_cells(axes[3], patched().sel(final), "answer follows patch")
plt.show()

# %% [markdown]
# *How to read it.* Layers are from bottom to top, as before. The two maps on the left show how many
# states a decoder reads correctly. The two on the right show how many answers follow an
# intervention.
#
# `S[1, r1]` is used: answers follow the swap and the patch there. `S[2, r1]` is this model's idle
# copy. Both decoders read the bridge from it without an error, and no answer depends on it. This
# must be so: it is the last state at `r1`, and no block reads it. It holds the bridge because
# training teaches `(e1, r1) -> e2` there. At `S[2, r2]` a probe reads the bridge from .75 of the
# states and .06 of the answers follow. The state there predicts the answer, and an answer together
# with `r2` leaves few possible bridges, which may be what the probe reads.
#
# ### Over training
#
# We follow the state that is used in the end, `S[1, r1]`.

# %% alt="Lens, probe, swap and patch after block 1 over training, with the accuracy on test_ii"
from implicit_reasoning.figures import BLACK, BLUE, GREY, ORANGE, SKY

here = {"layer": 1, "pos": "r1"}
curves = {
    "lens reads the bridge": (unembedded, SKY, "o-"),
    "probe reads the bridge": (lambda end="": decoded(probes, end), BLUE, "s-"),
    "answer follows the swap": (lambda end="": followed(swaps, end), ORANGE, "^-"),
    "answer follows the patch": (patched, VERMILION, "v-"),
}
nulls = {
    "lens": unembedded(truth="shuffled"),
    "probe": decoded(probes, truth="shuffled"),
    "swap": followed(swaps, edit=CONTROLS).max("edit"),
    "patch": patched(expected="shuffled"),
}

fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
for name, (of, color, style) in curves.items():
    ax.plot(steps, of().sel(here), style, color=color, label=name)
    ax.fill_between(steps, of("_low").sel(here), of("_high").sel(here), color=color, alpha=0.15)
highest = np.fmax.reduce([null.sel(here).values for null in nulls.values()])
ax.plot(steps, highest, "--", color=GREY, label="highest null of the four")
rows = [row for row in run.metrics if "accuracy/test_ii" in row]
accuracy = [row["accuracy/test_ii"] for row in rows]
ax.plot(
    [row["step"] for row in rows], accuracy, color=BLACK, linewidth=1, label="accuracy on test_ii"
)
ax.set(xlabel="training step", ylabel="share", ylim=(-0.02, 1.02))
fig.legend(loc="outside right upper", frameon=False, fontsize=9)
plt.show()

print("  step" + "".join(f"{name.split()[-1 if 'follows' in name else 0]:>7s}" for name in curves))
for step in steps:
    values = [float(of().sel(here | {"step": step})) for of, *_ in curves.values()]
    print(f"{step:6d}" + "".join(f"{value:7.2f}" for value in values))
print(f"highest of all nulls at these steps: {np.nanmax(highest):.2f}")

# %% [markdown]
# *How to read it.* The lens and the probe count states. The swap and the patch count answers, of
# chains that the checkpoint answers correctly without them. Early checkpoints answer too few.
# Bands: 95% intervals, clustered by bridge, and by state for the probe.
#
# At step 1,000 the lens reads the bridge from .76 of the states, and .38 and .24 of the answers
# follow the swap and the patch. So the bridge can be read from many states where it is not used
# yet. The curve of the probe is closer to those of use. A probe must read the bridge from a prefix
# that it was not fitted to, so it finds only what the states of one bridge have in common.
#
# ### Facts that no training chain uses
#
# An `O` fact is taught as `(e1, r1) -> e2`, and no training chain uses it. Is its bridge decodable
# at `S[1, r1]`? Is it used? We compare with `I` facts at the end of training.


# %%
def interval(result, name, **at):
    """Write a mean with its 95% interval."""
    mean, low, high = (float(result[f"{name}{end}"].sel(at)) for end in ("", "_low", "_high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


moved = {"outcome": "counterfactual", **here}
unembedding = {"variable": "e2", "reading": "immediate", "layer": 1}
probing = {"variable": "e2", "held_out": "prefix", **here}
for facts, group, source in (("I", "id", "another bridge"), ("O", "ood", "O source")):
    alone, probed = (one.sel(final | {"group": group}) for one in (decoding, probes))
    other = patches.sel(final | {"group": source})
    n_states = int(probed.n_states.sel(pos="r1"))
    n_bridges = int(other.fraction_n.sel(moved | {"expected": "true"}))
    print(f"{facts} facts")
    for what, n, result, name, at, true, null in (
        ("unembedding reads e2", n_states, alone, "top1", unembedding, "truth", "another's"),
        ("probe reads e2", n_states, probed, "accuracy", probing, "truth", "shuffled"),
        ("answer follows patch", n_bridges, other, "fraction", moved, "expected", "shuffled"),
    ):
        value = interval(result, name, **at, **{true: "true"})
        chance = float(result[name].sel(at | {true: null}))
        unit = "bridges" if n == n_bridges else "states"
        print(f"  {what:22s}{value}, null {chance:.2f}, {n} {unit}")
    print(f"  {'composed chain, asked':22s}{interval(other, 'direct')}")

# %% [markdown]
# *How to read it.* Brackets: 95% intervals. The nulls are the bridge of another fact, a probe of
# shuffled bridges, and the answer of another pair of questions. The last line is the accuracy on
# the composed chains themselves, which are not trained on.
#
# The unembedding reads the bridge of an `O` fact almost as well as that of an `I` fact. But in a
# chain its bridge is followed in .27 of cases, about as often as such chains are answered.

# %% [markdown]
# **Answer.** Not everywhere that it can be decoded. In the built model a probe reads the bridge
# from seven states with .97, and answers follow a swap at two of them. In the trained model the
# lens reads the bridge from `S[1, r1]` (.95) and from `S[2, r1]` (1.00), and only the first is
# used: .96 of the answers follow a swap of its mean code there, and .97 a patch of the state, where
# the nulls are at most .03. Decoding also comes before use. At step 1,000 the lens reads .76 of the
# bridges, and .24 of the answers follow the patch. Bridges of `O` facts are read from .86
# [.73, .94] of the states and followed in .27 [.18, .37] of the cases.
#
# **Caveat.** This is one run: a curve, no claim about training. The result depends on the
# instruments. What is decodable depends on the decoder: the lens reads .86 of the bridges of `O`
# facts and a probe .40. A swap tests one linear code. A patch exchanges the whole state, whatever
# it is used for. Both count only chains that are answered correctly without them. Use does not mean
# need: the instrument `erasure` asks whether answers survive without the code, and the report
# [combines all three](../concepts/claims.md#decodable-or-used).
