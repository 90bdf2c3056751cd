# %% [markdown]
# # Watch a transformer grok
#
# **Question.** A transformer is trained on single facts and on chains of two facts. When does it
# answer chains that it has never seen?

# %%
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training import train

changes = {"steps": 300, "model.d_model": 64, "model.d_mlp": 256}

# %% tags=["smoke"]
import os

if os.environ.get("TUTORIAL_SIZE") == "smoke":
    from tests.training.tiny import TINY

    changes = TINY

# %%
config = apply_overrides(load_config("composition:pocket"), changes)
run = train(config, "runs/tutorials/grok")
run.dataset.sizes()

# %% [markdown]
# `run.metrics` has a row for each evaluation. The training chains are memorised first.

# %%
import matplotlib.pyplot as plt

rows = [row for row in run.metrics if "accuracy/train_ii" in row]
for split in ("train_ii", "test_ii"):
    plt.plot([row["step"] for row in rows], [row[f"accuracy/{split}"] for row in rows], label=split)
plt.xlabel("training step")
plt.ylabel("accuracy")
plt.legend()
plt.show()

# %% [markdown]
# **Answer.** Not within 300 steps of a narrow model. (This page is a skeleton: it shows how
# tutorials are written. The tutorial that trains long enough replaces it.)
