"""Edit one fact of one model, as the command `edit` does.

    edit = parse_edit(run.dataset.world, "e12,r3", "e40")
    params = edit_fact(run.model, before, run.dataset, edit, choose_method(run.model, "rome", [0]))

The methods are those editors of the instrument `knowledge_editing` that change weights and learn
nothing but the fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.editing.batched import edit_together
from implicit_reasoning.analysis.editing.edit_cases import MOST, FactEdits, consequences, rounded
from implicit_reasoning.analysis.editing.fine_tuning import Lesson, Tuning, fine_tune
from implicit_reasoning.analysis.editing.knowledge_editing import (
    MEMIT,
    ROME,
    W_OUT,
    WEIGHTS,
    fact_prompts,
    moment_prompts,
)
from implicit_reasoning.analysis.editing.rank_one import rome_edits
from implicit_reasoning.analysis.editing.value_search import FactPrompts, ValueSearch
from implicit_reasoning.config.messages import did_you_mean
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import LowRankChange, changed_depths, write_change
from implicit_reasoning.runtime.machine import highest_precision
from implicit_reasoning.worlds import Dataset, World
from implicit_reasoning.worlds.world import NONE

METHODS = (ROME, MEMIT, W_OUT, WEIGHTS)
"""Names of the methods. On a command line, a blank in a name is written as `_`."""

N_PROMPTS = rounded(1 + 4 * MOST)
"""The number of consequences with padding. All edits of a model thus share compiled programs."""

_FACT = re.compile(r"<?e_?(\d+)>?\s*,\s*<?r_?(\d+)>?")
_ENTITY = re.compile(r"<?e_?(\d+)>?")


class FactEdit(NamedTuple):
    """A fact (e1, r1) -> b and its new tail b'.

    Attributes:
      fact: the number of the fact.
      head, relation, old, new: the numbers of e1, r1, b and b'.
    """

    fact: int
    head: int
    relation: int
    old: int
    new: int

    def as_edits(self) -> FactEdits:
        """Return the edit as the only one of its kind."""
        fact, new = (np.array([value], np.int32) for value in (self.fact, self.new))
        return FactEdits(fact, new, groups=("edited",), group=np.zeros(1, np.int64))


class EditMethod(NamedTuple):
    """How a model is edited.

    Attributes:
      name: a name from `METHODS`.
      layers: the unrolled depths of the blocks whose `W_out` changes, in ascending order; empty if
        all weights change.
    """

    name: str
    layers: tuple[int, ...]


def parse_edit(world: World, fact: str, to: str) -> FactEdit:
    """Read a fact and its new tail from text.

    Args:
      world: the world.
      fact: the entity and the relation of the fact, such as "e12,r3".
      to: the new tail, such as "e40".

    Raises:
      InputError: the text has another form, the world has no such fact or entity, or the new tail
        is the tail or the entity of the fact.
    """
    found = _FACT.fullmatch(fact.strip())
    if not found:
        raise InputError(f"--fact is {fact!r}; it must be an entity and a relation, such as e12,r3")
    head, relation = map(int, found.groups())
    _check_below("--fact", f"e{head}", head, world.n_entities, "entities e")
    _check_below("--fact", f"r{relation}", relation, world.n_relations, "relations r")
    number, old = int(world.fact_id[head, relation]), int(world.tail[head, relation])
    if number == NONE:
        there = ", ".join(f"r{r}" for r in np.flatnonzero(world.tail[head] >= 0))
        raise InputError(
            f"the world has no fact (e{head}, r{relation}); e{head} has "
            + (f"facts with the relations {there}" if there else "no facts")
        )
    named = _ENTITY.fullmatch(to.strip())
    if not named:
        raise InputError(f"--to is {to!r}; it must be an entity, such as e40")
    new = int(named[1])
    _check_below("--to", f"e{new}", new, world.n_entities, "entities e")
    what = {old: "already the tail", head: "the entity"}.get(new)
    if what:
        raise InputError(
            f"--to is e{new}, which is {what} of the fact (e{head}, r{relation}); give another "
            "entity"
        )
    return FactEdit(number, head, relation, old, new)


def _check_below(flag: str, given: str, number: int, count: int, kind: str) -> None:
    if number >= count:
        letter = kind[-1]
        raise InputError(
            f"{flag} contains {given}, but the world has the {kind}0 to {letter}{count - 1}"
        )


def choose_method(model: Transformer, name: str, layers: Sequence[int] = ()) -> EditMethod:
    """Check a method and its blocks.

    Args:
      model: the model.
      name: a name from `METHODS`, in which blanks may be written as `_`.
      layers: the unrolled depths of the blocks; by default block 0. Only `memit` can change several
        blocks, and `tuned` changes all weights.

    Raises:
      InputError: the method or a block does not exist, or the method cannot use these blocks.
    """
    known = {one.replace(" ", "_"): one for one in METHODS}
    if name not in (*known, *METHODS):
        raise InputError(
            f"--method is {name!r}{did_you_mean(name, known)}; choose from {', '.join(known)}"
        )
    method = known.get(name, name)
    blocks = tuple(sorted({*layers})) or (0,)
    for layer in blocks:
        changed_depths(model, layer)
    if method == WEIGHTS:
        if layers:
            raise InputError(
                f"--method={WEIGHTS} changes the weights of all blocks; leave out --layer, or "
                "choose --method=tuned_W_out"
            )
        return EditMethod(method, ())
    if len(blocks) > 1 and method != MEMIT:
        raise InputError(
            f"--layer has {len(blocks)} blocks, but --method={name} changes one block; give one "
            f"block, or choose --method={MEMIT}"
        )
    return EditMethod(method, blocks)


def edit_fact(
    model: Transformer,
    params: Params,
    dataset: Dataset,
    edit: FactEdit,
    method: EditMethod,
    *,
    search: ValueSearch = ValueSearch(),  # noqa: B008 - it is frozen
    tuning: Tuning = Tuning(),  # noqa: B008
) -> Params:
    """Return the parameters of a model in which a fact is edited.

    Args:
      model: the model.
      params: the parameters of one model, which are not changed.
      dataset: a dataset that can be edited; see `edit_cases.need_editable`.
      edit: the fact and its new tail.
      method: the method.
      search: the settings of the search for v*, for `rome` and `memit`.
      tuning: the settings of fine-tuning, for `tuned W_out` and `tuned`.
    """
    edits = edit.as_edits()
    inputs = {
        "facts": fact_prompts(dataset, edits)._asdict(),
        "moment": moment_prompts(dataset),
        "case": consequences(dataset, edits)._asdict(),
    }

    @jax.jit
    @highest_precision
    def compute(params: Params, inputs: Any) -> Params:
        if method.name in (W_OUT, WEIGHTS):
            case = {name: column[0, :1] for name, column in inputs["case"].items()}
            taught = jnp.ones(1, bool)
            lesson = Lesson(case["tokens"], case["position"], case["after"], taught)
            layer = method.layers[0] if method.layers else None
            return fine_tune(model, params, lesson, tuning, layer)
        prompts, moment, last = FactPrompts(**inputs["facts"]), inputs["moment"], method.layers[-1]
        made = rome_edits(model, params, prompts, moment, last, search)
        if method.name == MEMIT:
            return edit_together(model, params, prompts, made.added, moment, method.layers)
        change = LowRankChange(*(part[0] for part in made.change))
        return write_change(model, params, last, change)

    changed: Params = compute(params, jax.tree.map(jnp.asarray, inputs))
    return changed
