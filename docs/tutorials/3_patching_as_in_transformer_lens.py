# %% [markdown]
# # Patching as in TransformerLens
#
# **Question.** You know `run_with_cache`, activation patching and head ablation from
# TransformerLens. How do you do the same here, and do you get the same numbers?
#
# This page does three things twice, with one model and the same prompts. The blocks after
# *TransformerLens* are parts of one script, [transformer_lens_part.py](transformer_lens_part.py),
# which runs in an environment of its own, because it needs PyTorch. It saves what it finds in
# [transformer_lens_part.npz](transformer_lens_part.npz), and the variable `theirs` holds these
# arrays. All other blocks run here.

# %% [markdown]
# ## A model and prompts
#
# The model is *planted*: its weights are written by hand, so we know what a tool should find. It
# answers two-hop questions `(e1, r1, r2) -> e3`. One head copies `e1` to the position of `r1`, and
# an MLP looks up the bridge `e2` there. A later head copies `e2` to the position of `r2`, and an
# MLP looks up the answer there. The seed chose the layers and the heads.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.truth.known import planted_model, small_world

dataset = small_world()
known = planted_model("composer", dataset, dataset.splits, seed=7)
model = known.subject.model
params = jax.tree.map(lambda leaf: leaf[0], known.subject.params())
print(model.spec)
print([str(claim) for claim in sorted(known.mechanism.true) if claim.kind == "moves"])

# %% [markdown]
# A corrupt prompt ends with the same `r2` as its clean prompt, but begins with another fact. Its
# answer is another one.

# %%
from implicit_reasoning.analysis import PromptPairs


def pairs_of(dataset):
    rows = dataset.probes("train_ii")[:60]
    tokens, truth = dataset.tokens[rows], {k: v[rows] for k, v in dataset.truth.items()}
    other = (truth["r2"][:, None] == truth["r2"]) & (truth["answer"][:, None] != truth["answer"])
    partner = (np.random.default_rng(0).random(other.shape) * other).argmax(1)
    return PromptPairs(
        clean=tokens,
        corrupt=tokens[partner],
        answer=truth["answer"],
        corrupt_answer=truth["answer"][partner],
        positions=dataset.positions,
        clusters=truth["e2"],
    )


pairs = pairs_of(dataset)
print(len(pairs), "pairs; the first:", pairs.clean[0], pairs.corrupt[0])

# %% [markdown]
# Weights go to TransformerLens in a file with HookedTransformer's names and a JSON configuration.

# %%
from pathlib import Path

from implicit_reasoning.model.exchange import save_weights

folder = Path("runs/tutorials/patching")
folder.mkdir(parents=True, exist_ok=True)
save_weights(folder / "model.safetensors", model, params)
names = ("clean", "corrupt", "answer", "corrupt_answer")
np.savez(folder / "prompts.npz", **{name: getattr(pairs, name) for name in names})

# %% [markdown]
# *TransformerLens*
#
# ```python
# import json
# import sys
# from functools import partial
# from importlib.metadata import version
# from pathlib import Path
#
# import numpy as np
# import torch
# from safetensors.torch import load_file
# from transformer_lens import HookedTransformer, HookedTransformerConfig, patching, utils
#
# torch.set_grad_enabled(False)
# folder = Path("runs/tutorials/patching")
# config = HookedTransformerConfig(**json.loads((folder / "model.json").read_text()))
# model = HookedTransformer(config)
# model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
# prompts = {name: torch.tensor(x).long() for name, x in np.load(folder / "prompts.npz").items()}
# clean, corrupt = prompts["clean"], prompts["corrupt"]
# answer, corrupt_answer = prompts["answer"], prompts["corrupt_answer"]
# ```

# %% tags=["hidden"]
import os
import subprocess

# Where transformer_lens_part.py and what it saved are: in a checkout, or beside this file.
parts = Path("docs/tutorials") if Path("docs/tutorials").exists() else Path()

# %% tags=["smoke"]
if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.peers.environment import ROOT

    parts = ROOT / "docs" / "tutorials"

# %% tags=["hidden"]
# In a checkout with TransformerLens's environment, the script runs. Else, what it saved is read.
python, saved = Path(".peers/transformer_lens_2/bin/python"), parts / "transformer_lens_part.npz"
if python.exists():
    script = [python.absolute(), parts / "transformer_lens_part.py", saved]
    without_ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(script, check=True, env=without_ours)
if not saved.exists():
    raise FileNotFoundError(
        "transformer_lens_part.npz is missing; put this file, which is beside the tutorial, into "
        "the folder in which you run it"
    )
theirs = dict(np.load(saved))

# %% [markdown]
# ## 1. Read activations by hook names
#
# *TransformerLens*
#
# ```python
# logits, cache = model.run_with_cache(clean)
# state = cache["blocks.0.hook_resid_post"]  # or cache["resid_post", 0]
# pattern = cache["pattern", 3]
# ```
#
# *Here.* Parameters are separate from the model, because a run has many checkpoints. `Hooked` puts
# the two together and has TransformerLens's interface.

# %%
from implicit_reasoning.model.hooks import Hooked

hooked = Hooked(model, params)
logits, cache = hooked.run_with_cache(pairs.clean)
state = cache["blocks.0.hook_resid_post"]  # or cache["resid_post", 0]
pattern = cache["pattern", 3]

ours = {"logits": logits, "state": state, "pattern": pattern}
for name, value in ours.items():
    difference = np.abs(value - theirs[name]).max()
    print(f"{name} {value.shape}: up to {np.abs(value).max():.1f}, differs by {difference:.1e}")

# %% [markdown]
# The names of the sites and the order of the dimensions are those of TransformerLens.

# %% [markdown]
# ## 2. Patch the residual stream at every layer and position
#
# *TransformerLens* runs one forward pass for each cell of the grid.
#
# ```python
# rows = torch.arange(len(clean))
#
#
# def logit_difference(logits):
#     last = logits[:, -1]
#     return (last[rows, answer] - last[rows, corrupt_answer]).mean()
#
#
# base, full = logit_difference(model(corrupt)), logit_difference(model(clean))
#
#
# def recovery(logits):
#     return (logit_difference(logits) - base) / (full - base)
#
#
# grid = patching.get_act_patch_resid_pre(model, corrupt, cache, recovery)
# ```
#
# *Here.* An `Edit` is a function and its arguments. The arguments are traced, so `jax.vmap` over
# them runs all positions, and the grid is one compiled program.

# %%
from implicit_reasoning.model import Edit

rows = np.arange(len(pairs))


def logit_difference(logits):
    last = logits[:, -1]
    return (last[rows, pairs.answer] - last[rows, pairs.corrupt_answer]).mean()


def put_clean(value, hooks, args):
    clean, pos = args
    return value.at[:, pos].set(clean[:, pos])


@jax.jit
def patched_grid(params, clean):
    def cell(site, pos):
        edits = {site: Edit(put_clean, (clean[site], pos))}
        return logit_difference(model.forward(params, pairs.corrupt, edits=edits)[0])

    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.spec.depth)]
    positions = jnp.arange(pairs.clean.shape[1])
    return jnp.stack([jax.vmap(lambda pos, s=site: cell(s, pos))(positions) for site in sites])


base, full = logit_difference(hooked(pairs.corrupt)), logit_difference(logits)
ours["grid"] = (patched_grid(params, dict(cache)) - base) / (full - base)
print("largest difference:", f"{np.abs(ours['grid'] - theirs['grid']).max():.1e}")

# %% alt="Maps of recovery by site and position: TransformerLens on the left, this package right"
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
for ax, title, grid in zip(
    axes, ("TransformerLens", "here"), (theirs["grid"], ours["grid"]), strict=True
):
    image = ax.imshow(grid, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (layer, pos), value in np.ndenumerate(np.asarray(grid)):
        color = "black" if value > 0.5 else "white"
        ax.text(pos, layer, f"{np.round(value, 2) + 0:.2f}", ha="center", va="center", color=color)
    ax.set_xticks(range(3), pairs.positions)
    ax.set_yticks(range(len(grid)), [f"resid_pre {layer}" for layer in range(len(grid))])
    ax.set(title=title, xlabel="position of the patch")
axes[0].set_ylabel("site of the patch")
figure.colorbar(image, ax=axes, label="recovery of the logit difference")
plt.show()

# %% [markdown]
# How to read it: a cell is 1 if the clean state at this place, put into the corrupt run, restores
# the logit difference of the clean run. It is 0 if the patch changes nothing. Before block 0 both
# `e1` and `r1` matter. From `resid_pre 1` to `resid_pre 3` all of the difference passes through the
# position of `r1`, where the bridge is looked up. Head 1 of block 3 takes it from there.

# %% [markdown]
# The instrument `pair_patching` computes the same grid with less code: for all checkpoints of a run
# with `analyze(run, ...)`, or for a model in memory with `measure(..., subject)`. It adds two
# things: a confidence interval that is clustered by bridge, and a null, in which the state comes
# from the run of another pair.

# %%
from implicit_reasoning.analysis import measure
from implicit_reasoning.analysis.patching.pair_patching import PairPatching

result = measure(PairPatching(pairs=pairs_of, metrics=["logit_difference"]), known.subject)
cell = dict(group="pairs", metric="logit_difference", direction="denoising")
result = result.isel(step=0).sel(cell)
instrument = result.recovery.sel(donor="pair", layer=slice(0, model.spec.depth - 1))
print("largest difference:", f"{np.abs(instrument.values - theirs['grid']).max():.1e}")
for donor in result.donor.values:
    here = result.sel(donor=donor, layer=1, pos="r1")
    mean, low, high = (float(here[f"recovery{end}"]) for end in ("", "_low", "_high"))
    print(f"S[1, r1] from {donor}: {mean:.2f} ({low:.2f} to {high:.2f})")
print("bridges:", int(here.recovery_n))

# %% [markdown]
# ## 3. Remove each head
#
# *TransformerLens*
#
# ```python
# def remove(z, hook, head):
#     z[:, :, head] = 0
#     return z
#
#
# def without(layer, head):
#     hook = (utils.get_act_name("z", layer), partial(remove, head=head))
#     return logit_difference(model.run_with_hooks(clean, fwd_hooks=[hook])) / full
#
#
# heads = [
#     [without(layer, head) for head in range(config.n_heads)] for layer in range(config.n_layers)
# ]
# ```
#
# *Here* the same hook works. Arrays cannot be changed in place, so it returns a changed copy. Hooks
# may print and branch, and run one operation at a time.


# %%
def remove(z, hook, head):
    return z.at[:, :, head].set(0)


def without(layer, head):
    hook = (f"blocks.{layer}.attn.hook_z", lambda z, hook: remove(z, hook, head))
    return logit_difference(hooked.run_with_hooks(pairs.clean, fwd_hooks=[hook])) / full


ours["heads"] = np.array(
    [
        [without(layer, head) for head in range(model.spec.n_heads)]
        for layer in range(model.spec.depth)
    ]
)
for name, values in (("TransformerLens", theirs["heads"]), ("here", ours["heads"])):
    print(name, values.round(3) + 0, sep="\n")

# %% [markdown]
# How to read it: each row is a layer, and each column a head. The number is the logit difference of
# the clean prompts without this head, divided by the one with all heads. 1: the head is not needed.

# %%
hook = ("blocks.3.attn.hook_z", lambda z, hook: remove(z, hook, 1))
last = np.asarray(hooked.run_with_hooks(pairs.clean, fwd_hooks=[hook])[:, -1])
print(f"without head 1 of layer 3: logits differ by at most {np.ptp(last, axis=-1).max():.1e}")

# %% [markdown]
# This is why we do not count correct answers here. Without this head rounding decides which logit
# is the highest, and the two packages round differently.

# %% [markdown]
# ## Do the numbers agree?

# %%
print("TransformerLens", theirs["version"])
for name, value in ours.items():
    print(f"{name}: largest difference {np.abs(value - theirs[name]).max():.1e}")

# %% [markdown]
# **Answer.** Names of hooks, shapes and hook functions are those of TransformerLens, and the same
# experiment gives the same numbers. Logits of up to 10 differ by 3e-5, and all other numbers by
# less than 1e-6. Two things are different: parameters are an argument, and arrays cannot be changed
# in place. For grids and checkpoints, write edits or use an instrument, because these are
# compiled once. `Hooked` runs one operation at a time and is for looking at a few prompts.
#
# **Caveat.** The model is planted, so this page shows that the tools agree and find a mechanism
# that is there. It does not show that a trained model has a mechanism that is so easy to see. It
# also has no layer norms. `make test-peers` compares trained models with layer norms too: the value
# at every hook that both packages have, and whole logit vectors for all cells of the patching
# grids. A null belongs to every patch: the state of another pair recovers .44 here, because it
# removes the corrupt answer without bringing the clean one. So a recovery of .4 alone shows
# nothing.
