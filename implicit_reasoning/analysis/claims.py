"""Claims: what an instrument may say of a mechanism, and how that is compared with the truth.

A claim is about a variable and a unit of the model (see `model.units`): "e2 is decodable at layer
1, position r1", "e2 is moved by head a2.h0". What is true of a model whose mechanism is known is a
`Mechanism`; claims that it leaves open count neither way.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from implicit_reasoning import renames
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.units import State, Unit, WholeModel, unit_from_json
from implicit_reasoning.statistics import max_statistic_p_values

_OF_STATES = {
    "decodable": "the variable can be read from the state at (layer, position)",
    "carried": "what the answer needs of the variable passes through (layer, position)",
    "used": "the variable's own code at (layer, position) is what the answer is computed from",
    "unused": "the variable's code at (layer, position) is there, and the answer ignores it",
    "composes": "answers are computed through the variable, somewhere",
    "memorised": "answers are looked up, not computed through the variable",
}
_OF_COMPONENTS = {
    "moves": "the head copies the variable from an earlier position to a later one",
    "stores": "the neuron is active for the fact or chain that the variable names, and no other",
    "part": "answers to chains are computed through the head, neuron or edge",
}
STATE_KINDS = frozenset(_OF_STATES)
"""Claims about states, and about the whole model ("composes" and "memorised")."""

CLAIM_KINDS = _OF_STATES | _OF_COMPONENTS
"""All kinds of claims, each with its meaning."""

MIN_CLUSTERS = 20
"""Clusters (bridges, facts or prefixes) that must count before a mean is shown in a map, or claimed
from: with fewer, not even a perfect result is sure to be `MIN_LOWER_BOUND`."""

MIN_LOWER_BOUND = 0.8
"""What the lower end of a 95% interval must reach before a claim says that something is so.

Where all n clusters agree, the lower end is .025 ** (1 / n): .83 with 20 clusters, and .9 and .95
only with 36 and 73. Held-out chains of the models of known mechanism have 25 to 35 bridges, and a
claim that nothing could earn would say nothing. With n as in a larger world, .8 is not lenient: of
250 clusters that are right by themselves, 85% must be."""

MAX_UPPER_BOUND = 0.2
"""What the upper end must not exceed before a claim says that something is not so; as above."""

MAJORITY = 0.5
"""What the lower end must reach where a claim is about most cases."""

MIN_TIMES_CHANCE = 3.0
"""Times the mean of its null that the lower end must be."""

Verdict = Literal["right", "wrong", "silent"]


@functools.total_ordering
@dataclass(frozen=True, init=False)
class Claim:
    """One statement.

    Attributes:
      kind: one of `CLAIM_KINDS`.
      variable: name of a variable, such as "e2"; for "stores", the text of a fact or chain.
      unit: what the statement is about.
    """

    kind: str
    variable: str
    unit: Unit

    def __init__(
        self, kind: str, variable: str, unit: Unit | int | None = None, pos: str | None = None
    ):
        """Make a claim about a unit, by default the whole model.

        Args:
          kind: one of `CLAIM_KINDS`.
          variable: its name.
          unit: what the claim is about, or, with `pos`, the layer of a state:
            `Claim("used", "e2", 1, "r1")` is `Claim("used", "e2", State(1, "r1"))`.
          pos: position of the state.
        """
        if not isinstance(unit, Unit):
            if (unit is None) != (pos is None):
                raise InputError(
                    f"a claim about a state needs a layer and a position, was given {unit!r} and "
                    f"{pos!r}"
                )
            unit = WholeModel() if unit is None or pos is None else State(unit, pos)
        elif pos is not None:
            raise InputError(f"a claim is about one unit, was given {unit} and position {pos!r}")
        for name, value in (("kind", kind), ("variable", variable), ("unit", unit)):
            object.__setattr__(self, name, value)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Claim):
            return NotImplemented
        return (self.kind, self.variable, self.unit) < (other.kind, other.variable, other.unit)

    def __str__(self) -> str:
        if self.kind in _OF_COMPONENTS:
            return f"{self.unit} {self.kind}: {self.variable}"
        where = "" if isinstance(self.unit, WholeModel) else f" at {self.unit}"
        return f"{self.variable} {self.kind}{where}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file; `claim_from_json` reads them."""
        return {"kind": self.kind, "variable": self.variable, "unit": self.unit.to_json()}


def claim_from_json(kept: Mapping[str, Any]) -> Claim:
    """The claim that `Claim.to_json` wrote.

    Raises:
      InputError: its unit is none.
    """
    return Claim(kept["kind"], kept["variable"], unit_from_json(kept["unit"]))


@dataclass(frozen=True)
class Mechanism:
    """What is true of a model.

    Attributes:
      true: claims that hold.
      open: claims that nobody knows, or on which one may differ; those are not counted.
      closed: kinds of which every claim that is neither true nor open is false.
    """

    true: frozenset[Claim]
    open: frozenset[Claim] = frozenset()
    closed: frozenset[str] = field(default_factory=lambda: frozenset(CLAIM_KINDS))

    def holds(self, claim: Claim) -> bool | None:
        """Whether a claim is true; None if that is open.

        Raises:
          InputError: its kind is none of `CLAIM_KINDS`; misspelt, it would count as open, as
            silence.
        """
        _check_kind(claim)
        if claim in self.true:
            return True
        return None if claim in self.open or claim.kind not in self.closed else False


def _check_kind(claim: Claim) -> None:
    if claim.kind not in CLAIM_KINDS:
        close = difflib.get_close_matches(claim.kind, CLAIM_KINDS, n=1)
        hint = f" - did you mean {close[0]!r}?" if close else ";"
        raise InputError(
            f"there is no kind of claim {claim.kind!r}{hint} the kinds are {', '.join(CLAIM_KINDS)}"
        )


def above_chance(result: xr.Dataset, name: str, null: Mapping[str, Any]) -> xr.DataArray:
    """Where an output is `MIN_TIMES_CHANCE` times its null, and their intervals do not overlap.

    Args:
      result: with `name`, `name_low` and `name_high`; the outcome and its null differ in labels.
      name: of the output.
      null: those labels, `{dimension: (label of the outcome, label of the null)}`.

    Returns:
      bool, without these dimensions.
    """
    of_outcome, of_null = ({dim: both[i] for dim, both in null.items()} for i in (0, 1))
    low = result[f"{name}_low"].sel(of_outcome, drop=True)
    mean, high = (result[f"{name}{end}"].sel(of_null, drop=True) for end in ("", "_high"))
    return (low >= MIN_TIMES_CHANCE * mean) & (low > high)


def claimed_units(
    kind: str,
    variable: str,
    observed: xr.DataArray,
    null: xr.DataArray,
    unit: Callable[..., Unit],
    *,
    error_rate: float = 0.05,
) -> set[Claim]:
    """The claims about units that are above the null, corrected for how many units there are.

    The chance of any false claim is at most `error_rate` where no unit differs from the null; see
    `statistics.max_statistic_p_values`.

    Args:
      kind: of the claims.
      variable: that they are about.
      observed: a statistic for each unit; its dimensions, in order, are the arguments of `unit`.
      null: the same dimensions, and "draw": the statistic in every draw of the null.
      unit: makes the unit of a cell from its labels, as in `lambda layer, neuron: Neuron(...)`.
      error_rate: chance of a false claim.

    Raises:
      InputError: fewer draws than could ever reach `error_rate`.
    """
    draws = null.sizes["draw"]
    if draws < round(1 / error_rate) - 1:
        raise InputError(
            f"an error rate of {error_rate} needs {round(1 / error_rate) - 1} draws of the null, "
            f"there are {draws}"
        )
    cells = observed.stack(cell=observed.dims)
    nulls = null.stack(cell=observed.dims).transpose("draw", "cell").sel(cell=cells.cell)
    p_values = max_statistic_p_values(
        cells.values.astype(np.float64), nulls.values.astype(np.float64)
    )
    chosen = cells.cell.values[p_values <= error_rate]
    return {Claim(kind, variable, unit(*map(_plain, labels))) for labels in chosen}


def claimed(kind: str, there: xr.DataArray) -> set[Claim]:
    """The claims of one kind: the true cells of an array with the dimensions of a claim."""
    cells = there.transpose("variable", "layer", "pos").to_series()
    return {Claim(kind, *map(_plain, cell)) for cell, value in cells.items() if value}


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def judge(claims: Iterable[Claim], mechanism: Mechanism) -> Verdict:
    """Right: at least one claim, and none false. Wrong: a false claim. Silent: nothing said.

    Raises:
      InputError: a claim of a kind that is none of `CLAIM_KINDS`; `describe` as well.
    """
    truths = [mechanism.holds(claim) for claim in claims]
    if False in truths:
        return "wrong"
    return "right" if True in truths else "silent"


def describe(claims: Iterable[Claim], mechanism: Mechanism) -> Mapping[str, list[str]]:
    """The claims in words, by what is true of them: "true", "false", "open"."""
    words = {True: "true", False: "false", None: "open"}
    found: dict[str, list[str]] = {word: [] for word in words.values()}
    for claim in sorted(claims):
        found[words[mechanism.holds(claim)]].append(str(claim))
    return found


__getattr__ = renames.old_names(
    __name__,
    {
        "ENOUGH": "MIN_CLUSTERS",
        "NEARLY_ALL": "MIN_LOWER_BOUND",
        "NEARLY_NONE": "MAX_UPPER_BOUND",
        "TIMES_CHANCE": "MIN_TIMES_CHANCE",
        "KINDS": "CLAIM_KINDS",
    },
)
