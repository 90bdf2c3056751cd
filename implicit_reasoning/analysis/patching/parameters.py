"""Parameter patching: copy the attention or the MLP of one block between checkpoints.

Parameters are patched between the measured checkpoint and the last checkpoint of the run, in two
directions:

- `later` patches a part of the last checkpoint into the measured checkpoint. If the answers become
  right, the measured checkpoint lacked only the later training of this part.
- `earlier` patches a part of the measured checkpoint into the last checkpoint. If the answers stay
  right, the later training of this part was unnecessary.

A part is the attention or the MLP of a block, with the preceding norm. A looped model applies the
weights of a block several times, and a patch replaces the weights in all applications.

Compare the results with the output `alone`, the accuracy of the unpatched checkpoints. Two
checkpoints may represent a variable in different ways, so their parts may be incompatible. Wrong
answers after a patch therefore do not show what a part computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.drawing import maps_over_steps, some_groups
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with, probability
from implicit_reasoning.analysis.states import chain_splits, choose_rows
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

PARTS = {"attention": ("ln1", "attn"), "MLP": ("ln2", "mlp")}
DIRECTIONS = ("later", "earlier")
_MAX_ROWS = 150  # maximum number of rows per split


class ParameterPatching(Instrument):
    """Instrument that patches parameters between a checkpoint and the last checkpoint."""

    name = "parameter_patching"
    version = 3
    definition = (
        "correct: share of queries that are answered correctly when the attention or the MLP "
        "of one block, with its norm, of this checkpoint is replaced by that of the last "
        "checkpoint (later), or when that of the last checkpoint is replaced by that of this "
        "checkpoint (earlier). probability: probability of the right answer. alone: share that "
        "this checkpoint (later) and the last checkpoint (earlier) answer correctly without an "
        "exchange."
    )
    outputs = {
        **dict.fromkeys(("correct", "probability"), ("direction", "part", "block", "example")),
        "alone": ("direction", "example"),
    }
    nulls = {"nothing exchanged": "alone"}
    reference = True

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose prompts are full chains, such as (e1, r1, r2).

        In confidence intervals, rows with the same bridge (e2) form a cluster.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        asked = queries.queries_of_rows(dataset, rows)
        inputs = {"tokens": queries.prompt_tokens(dataset, asked.parts), "answer": asked.answer}
        coords = {"direction": DIRECTIONS, "part": tuple(PARTS)}
        return Examples(inputs, splits, group, clusters_of(dataset, rows), coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the blocks.

        In a looped model, all applications of the same weights have one label.
        """
        return {"block": range(model.spec.n_layers)}

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of both checkpoints, without a patch and after each patch."""
        # The indices of part and block are traced, so that the model is compiled only once.
        parts, blocks = jnp.arange(len(PARTS)), jnp.arange(model.spec.n_layers)

        def answered(params: Params) -> dict[str, Array]:
            logits, answer = final_logits(model, params, inputs["tokens"]), inputs["answer"]
            found = answers_with(logits, answer), probability(logits, answer)
            return dict(zip(("correct", "probability"), found, strict=True))

        def both(own: Params, other: Params) -> tuple[dict[str, Array], Array]:
            def patched(part: Array, block: Array) -> dict[str, Array]:
                return answered(exchange(own, other, part, block))

            grid = jax.lax.map(
                lambda part: jax.lax.map(lambda block: patched(part, block), blocks), parts
            )
            return grid, answered(own)["correct"]

        this, last = params, inputs["reference"]
        pairs = jax.tree.map(lambda a, b: jnp.stack([a, b]), (this, last), (last, this))
        grids, alone = jax.lax.map(lambda pair: both(*pair), pairs)
        return grids | {"alone": alone}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the accuracy after each patch, next to the accuracy without a patch."""
        group = some_groups(result)[-1]
        of_group = result.sel(group=group)
        titles = {
            "later": "part of the last\ncheckpoint put into",
            "earlier": "put into the last\ncheckpoint: part of",
        }
        rows = {}
        for direction, title in titles.items():
            alone = of_group.alone.sel(direction=direction).expand_dims(part=["nothing"])
            alone = alone.expand_dims(block=result.block.values)
            grid = xr.concat([alone, of_group.correct.sel(direction=direction)], "part")
            rows[title] = grid
        caption = (
            f"A cell is the share of queries of {group} that are answered correctly when the "
            "attention or the MLP of one block comes from another checkpoint. In the first row "
            "of maps, a part of the last checkpoint is put into the checkpoint in the title. In "
            "the second row, a part of the checkpoint in the title is put into the last "
            "checkpoint. The row 'nothing' is the null: the model without an exchange. A share "
            "above the null means that the model lacked this part. A share below the null means "
            "that the parts of the two checkpoints do not work together, which does not show "
            "what a part computes."
        )
        drawing = maps_over_steps(rows, "share of correct answers", rows="part", columns="block")
        return [Figure("parameter_patching", "Which weights caused the change?", caption, drawing)]


def exchange(own: Params, other: Params, part: Array, block: Array) -> Params:
    """Return `own`, with one part of one block replaced by the part of `other`.

    Args:
      own: the parameters to patch.
      other: the parameters from which the part is copied.
      part: index of the part in `PARTS` (attention, MLP); may be traced.
      block: index of the block; may be traced.
    """

    def group(name: str, group: str) -> Params:
        number = next(n for n, groups in enumerate(PARTS.values()) if group in groups)
        take = (block == int(name)) & (part == number)
        both = own["blocks"][name][group], other["blocks"][name][group]
        found: Params = jax.tree.map(lambda a, b: jnp.where(take, b, a), *both)
        return found

    blocks = {
        name: {part_name: group(name, part_name) for part_name in groups}
        for name, groups in own["blocks"].items()
    }
    return own | {"blocks": blocks}
