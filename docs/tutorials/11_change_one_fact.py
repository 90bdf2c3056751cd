# %% [markdown]
# # Change one fact
#
# **Question.** We edit one fact of a model: the prime minister of a country is another person now.
# The model answers with the new person. Does it also know who the new prime minister's wife is?
#
# In language models, many edits fail here: the fact is answered anew, and questions that compose it
# are answered as before ([MQuAKE](https://arxiv.org/abs/2305.14795)). In a known world, every
# consequence of an edit has a true answer, so we can measure which ones follow, and ask why.
#
# We use both models of [tutorial 7](7_is_it_reasoning.md). With these runs, this tutorial takes
# about four minutes on two slow cores.

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training import train

changes = {"model.d_model": 128, "model.d_mlp": 512, "steps": 4000, "evaluation.every": 250}
supervision = {"loss.early_supervision.weight": 6.0}
n_edits, steps = 50, (500, 1000, 4000)

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    changes |= {"model.d_model": 16, "model.d_mlp": 16, "steps": 20, "task.probes": 200}
    n_edits, steps = 4, (0, 20)

# %%
config = load_config("ladder:pocket")
runs = {
    "usual loss": train(apply_overrides(config, changes), "runs/tutorials/ladder"),
    "early supervision": train(
        apply_overrides(config, changes | supervision), "runs/tutorials/ladder_early"
    ),
}  # finished runs are only opened

# %% [markdown]
# ## Edit one fact
#
# A fact is `(e1, r1) -> b`. It gets a new tail `b'`. We take the first of the facts that are edited
# below, in the model with early supervision.
#
# The method is `rome`. It changes one matrix, `W_out` of the first MLP, by a matrix of rank one.
# After the change, the MLP maps the *key* of the fact (the activations of its neurons at `r1`) to a
# *value* with which the model answers `b'`.

# %%
import jax

from implicit_reasoning.analysis.editing.edit_cases import choose_edits
from implicit_reasoning.analysis.editing.edit_effects import measure_effects
from implicit_reasoning.analysis.editing.edit_summary import console_text
from implicit_reasoning.analysis.editing.fact_edit import choose_method, edit_fact, parse_edit
from implicit_reasoning.worlds.dataset import world_of

run = runs["early supervision"]
world, model = world_of(run.dataset), run.model
params = jax.tree.map(lambda leaf: leaf[0], run.params(run.steps[-1:]))
chosen = choose_edits(run.dataset, n_edits)
facts = world.facts
fact, new = int(chosen.fact[0]), int(chosen.new[0])
edit = parse_edit(world, f"e{facts.head[fact]},r{facts.relation[fact]}", f"e{new}")
method = choose_method(model, "rome", [0])
edited = edit_fact(model, params, run.dataset, edit, method)
effects = measure_effects(model, params, edited, run.dataset, edit, method)
print(console_text(effects))

# %% [markdown]
# In the table, *known* counts the prompts that are answered right before the edit, and only these
# count. The right column is a control: ten random changes of the same size.
#
# The command `edit` prints the same, and writes a page with every prompt
# ([Edit a fact](../how-to/knowledge-editing.md)).
#
# ## Edit fifty facts
#
# One edit is an example. The instrument `knowledge_editing` makes many edits, each in its own copy
# of the model, and asks about all their consequences. Copies are not stored: the change is two
# vectors. Intervals are clustered by edit. We look at ordinary facts (the group `id`), which are
# about a third of the fifty; the other groups are facts that no training chain uses, and cold
# facts.
#
# Two more editors write to the *state* instead of the weights. `state` adds the value of the edit
# to the output of the MLP wherever a prompt uses the fact. `resid_mid` adds a vector before the
# MLP.

# %%
from implicit_reasoning.analysis import analyze
from implicit_reasoning.analysis.editing.knowledge_editing import KnowledgeEditing

instrument = KnowledgeEditing(edits=n_edits)
found = {
    name: analyze(run, instrument, steps=[step for step in run.steps if step in steps])
    for name, run in runs.items()
}

scores = ("efficacy", "first hop", "second hop", "stale second hop", "locality")
editors = ("rome", "state", "resid_mid", "random", "none")


def interval(of):
    return f"{of.share:.2f} [{of.share_low:.2f}, {of.share_high:.2f}]"


for name, result in found.items():
    end = result.isel(step=-1, group=0)
    n = int(end.share_n.sel(editor="rome", score="efficacy"))
    print(f"{name}, step {int(end.step):,}: {n} edits")
    print(f"{'':10s}" + "".join(f"{score:>19s}" for score in scores))
    for editor in editors:
        row = (interval(end.sel(editor=editor, score=score)) for score in scores)
        print(f"{editor:10s}" + "".join(f"{text:>19s}" for text in row))
    print()

# %% [markdown]
# *How to read it.* Each number is a mean share of prompts over edits, with its 95% interval.
# *Efficacy*: the fact has the new answer. All other scores are those of edits that succeed. *First
# hop*: chains `(e1, r1, r2)` have the answer that follows from the new tail. *Second hop*: chains
# `(e0, r0, r1)` through another entity end in the new tail. *Stale second hop*: they keep their old
# answer. *Locality*: other prompts keep their answer. `random` and `none` are the nulls.
#
# ## Does more training help?
#
# The instrument measured all checkpoints in one program.

# %% alt="Share of chains that follow an edit at each hop over training, for both models"
import matplotlib.pyplot as plt

from implicit_reasoning.figures import BLUE, GREY, VERMILION

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
shown = (("efficacy", GREY, "^:"), ("first hop", BLUE, "o-"), ("second hop", VERMILION, "s-"))
for ax, (name, result) in zip(axes, found.items(), strict=True):
    for score, color, style in shown:
        of = result.isel(group=0).sel(editor="rome", score=score)
        ax.plot(of.step, of.share, style, color=color, label=score)
        ax.fill_between(of.step, of.share_low, of.share_high, color=color, alpha=0.15)
    ax.set(title=name, xlabel="training step", ylim=(-0.03, 1.03))
axes[0].set_ylabel("share of prompts after the edit")
axes[0].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# *How to read it.* A band is a 95% interval over edits. A missing point means that no chain counts:
# none was answered right before the edit.
#
# ## Why does the first hop not follow?
#
# A chain `(e1, r1, r2)` has the same states up to `r1` as the fact. The edit changes the state at
# `r1` in both, and the fact has the new answer. So what the chains lack is not the edit. The second
# block turns the new state at `r1` into the answer `b'`, but at the last position it does not read
# `b'` as the bridge from this state.
#
# `state` and `resid_mid` show the same without any edit of a weight: they overwrite the state at
# `r1`, and no first-hop chain follows in the model with the usual loss. Early supervision teaches
# that the state after the first block codes the bridge. In that model, a third of the chains
# follow, and after `resid_mid` half of them.
#
# ## Why does the second hop not follow?
#
# In a chain `(e0, r0, r1)`, the edited fact is used at the last position. With `state`, which adds
# the value of the edit there, nearly all chains follow. With `rome`, hardly any does. The rank-one
# edit writes its value only where the neurons resemble the key of the fact. At the last position of
# these chains they do not: the bridge has not reached this position when the first MLP runs.
#
# So perhaps the model stores facts twice: in the first block for the first hop, and in the second
# block for the second hop. We edit the MLP of the second block in the same way.


# %%
class SecondBlock(KnowledgeEditing):
    name = "editing_block_1"  # a result of its own, beside that of the first block


second_block = SecondBlock(("rome",), edits=n_edits, layer=1)
for name, run in runs.items():
    end = analyze(run, second_block, steps=run.steps[-1:]).isel(step=-1, group=0)
    row = (f"{score} {interval(end.sel(editor='rome', score=score))}" for score in scores)
    print(f"{name}, rome in block 1:\n  " + "\n  ".join(row))

# %% [markdown]
# *How to read it.* Here the key is that of the second MLP at `r1` of the fact.
#
# ## Answer
#
# - The answer to the edited fact changes in all edits, and other prompts keep theirs. This is the
#   published picture: direct answers are easy to edit.
# - Chains do not follow. With the usual loss, .00 follow at the first hop and .08 at the second
#   hop, and .92 of the second-hop chains keep their old answer. Neither share rises between the
#   checkpoints of this run.
# - With early supervision, .32 of the first-hop chains follow and none of the second-hop chains.
#   In these chains, the second block reads the bridge from the state that answers the fact.
# - The second hop does not fail because the new value is useless. It fails because the rank-one
#   edit is not active where chains use the fact. Neither block has a store that both the fact
#   alone and the second hop read with one key.
#
# ## Caveats
#
# - This is one run of each model, and 17 edits. An interval of [.00, .20] is all that 17 edits with
#   no success can say.
# - The value is optimized for the answer to the fact. Another value could be read as a bridge by
#   more chains: `ValueSearch.enough` says how certain the answer must be.
# - Only chains that were answered right before the edit count. With the usual loss, these are
#   mostly training chains.
# - `experiments/editing.py` asks these questions with decision rules, more runs and all editors.
