"""Claims of instruments about a mechanism, and their comparison with the truth.

A claim is about a variable and a unit of the model (see `model.units`): "e2 is decodable at layer
1, position r1", "e2 is moved by head a2.h0". A `Mechanism` states what is true of a model with a
known mechanism. Claims that it leaves open count neither as right nor as wrong.
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
    "carried": (
        "the information about the variable that the answer needs passes through (layer, position)"
    ),
    "used": "the answer is computed from the representation of the variable at (layer, position)",
    "unused": "the variable can be read at (layer, position), but the answer does not use it there",
    "composes": "answers are computed through the variable, somewhere",
    "memorised": "answers are looked up, not computed through the variable",
}
_OF_COMPONENTS = {
    "moves": "the head copies the variable from an earlier position to a later one",
    "stores": "the neuron is active only for the fact or chain that the variable names",
    "part": "answers to chains are computed through the head, neuron or edge",
}
STATE_KINDS = frozenset(_OF_STATES)
"""Kinds of claims about states, and about the whole model ("composes" and "memorised")."""

CLAIM_KINDS = _OF_STATES | _OF_COMPONENTS
"""All kinds of claims, each with its meaning."""

MIN_CLUSTERS = 20
"""Minimum number of clusters (bridges, facts or prefixes) for a mean to be drawn or claimed from.

With fewer clusters even a perfect result may not reach `MIN_LOWER_BOUND`.
"""

MIN_LOWER_BOUND = 0.8
"""Minimum lower end of a 95% interval for a claim that something is so.

If all n clusters agree, the lower end is .025 ** (1 / n). It is .83 with 20 clusters, and reaches
.9 and .95 only with 36 and 73 clusters. Models with known mechanisms have 25 to 35 bridges in
held-out chains, so a threshold of .9 would rule out every claim about them. With more clusters, .8
is not lenient: with 250 clusters of one example each, 85% of the examples must be right.
"""

MAX_UPPER_BOUND = 0.2
"""Maximum upper end of a 95% interval for a claim that something is not so."""

MAJORITY = 0.5
"""Minimum lower end of a 95% interval for a claim about most cases."""

MIN_TIMES_CHANCE = 3.0
"""Minimum ratio of the lower end of an interval to the mean of the null control."""

Verdict = Literal["right", "wrong", "silent"]


@functools.total_ordering
@dataclass(frozen=True, init=False)
class Claim:
    """A statement about a variable and a unit of the model.

    Attributes:
      kind: one of `CLAIM_KINDS`.
      variable: name of a variable, such as "e2"; for "stores", the text of a fact or chain.
      unit: the unit that the statement is about.
    """

    kind: str
    variable: str
    unit: Unit

    def __init__(
        self, kind: str, variable: str, unit: Unit | int | None = None, pos: str | None = None
    ):
        """Make a claim about a unit; the default unit is the whole model.

        Args:
          kind: one of `CLAIM_KINDS`.
          variable: name of the variable.
          unit: the unit, or, together with `pos`, the layer of a state:
            `Claim("used", "e2", 1, "r1")` is `Claim("used", "e2", State(1, "r1"))`.
          pos: position of the state.

        Raises:
          InputError: only one of layer and position is given, or a unit is given with a position.
        """
        if not isinstance(unit, Unit):
            if (unit is None) != (pos is None):
                raise InputError(
                    f"a claim about a state needs a layer and a position, got {unit!r} and {pos!r}"
                )
            unit = WholeModel() if unit is None or pos is None else State(unit, pos)
        elif pos is not None:
            raise InputError(
                "a claim is about one unit, so it takes a unit or a layer and position; got the "
                f"unit {unit} and position {pos!r}"
            )
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
        """Return JSON values, which `claim_from_json` reads."""
        return {"kind": self.kind, "variable": self.variable, "unit": self.unit.to_json()}


def claim_from_json(kept: Mapping[str, Any]) -> Claim:
    """Return the claim that `Claim.to_json` wrote.

    Raises:
      InputError: `kept["unit"]` is not a unit.
    """
    return Claim(kept["kind"], kept["variable"], unit_from_json(kept["unit"]))


@dataclass(frozen=True)
class Mechanism:
    """The claims that are true of a model.

    Attributes:
      true: claims that are true.
      open: claims whose truth is unknown or disputed; they are not counted.
      closed: kinds of claims for which every claim outside of `true` and `open` is false.
    """

    true: frozenset[Claim]
    open: frozenset[Claim] = frozenset()
    closed: frozenset[str] = field(default_factory=lambda: frozenset(CLAIM_KINDS))

    def holds(self, claim: Claim) -> bool | None:
        """Return whether a claim is true; None if that is open.

        Raises:
          InputError: the claim's kind is not in `CLAIM_KINDS`. Without this error a misspelt kind
            would count as open.
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
    """Return where an output is above its null control.

    The lower end of the output must be at least `MIN_TIMES_CHANCE` times the mean of the null, and
    above the upper end of the null.

    Args:
      result: dataset with `name`, `name_low` and `name_high`. Labels tell the output from its null.
      name: name of the output.
      null: the labels, as `{dimension: (label of the output, label of the null)}`.

    Returns:
      bool, without the dimensions of `null`.
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
    """Return claims about the units that are above the null, corrected for the number of units.

    If no unit differs from the null, the probability of any false claim is at most `error_rate`;
    see `statistics.max_statistic_p_values`.

    Args:
      kind: kind of the claims.
      variable: variable of the claims.
      observed: a statistic for each unit; the labels of its dimensions, in order, are the arguments
        of `unit`.
      null: the statistic in every draw of the null; it has the dimensions of `observed` and "draw".
      unit: function that makes a unit from its labels, such as `lambda layer, neuron: Neuron(...)`.
      error_rate: maximum probability of any false claim.

    Raises:
      InputError: there are too few draws to reach `error_rate`.
    """
    draws = null.sizes["draw"]
    if draws < round(1 / error_rate) - 1:
        raise InputError(
            f"an error rate of {error_rate} needs at least {round(1 / error_rate) - 1} draws of "
            f"the null, got {draws}"
        )
    cells = observed.stack(cell=observed.dims)
    nulls = null.stack(cell=observed.dims).transpose("draw", "cell").sel(cell=cells.cell)
    p_values = max_statistic_p_values(
        cells.values.astype(np.float64), nulls.values.astype(np.float64)
    )
    chosen = cells.cell.values[p_values <= error_rate]
    return {Claim(kind, variable, unit(*map(_plain, labels))) for labels in chosen}


def claimed(kind: str, there: xr.DataArray) -> set[Claim]:
    """Return a claim of one kind for each true cell of `there`.

    Args:
      kind: kind of the claims.
      there: bool array with the dimensions variable, layer, pos.
    """
    cells = there.transpose("variable", "layer", "pos").to_series()
    return {Claim(kind, *map(_plain, cell)) for cell, value in cells.items() if value}


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def judge(claims: Iterable[Claim], mechanism: Mechanism) -> Verdict:
    """Compare claims with a mechanism.

    Returns:
      "wrong" if any claim is false, else "right" if any claim is true, else "silent".

    Raises:
      InputError: the kind of a claim is not in `CLAIM_KINDS`.
    """
    truths = [mechanism.holds(claim) for claim in claims]
    if False in truths:
        return "wrong"
    return "right" if True in truths else "silent"


def describe(claims: Iterable[Claim], mechanism: Mechanism) -> Mapping[str, list[str]]:
    """Return the claims in words, grouped by truth: "true", "false", "open".

    Raises:
      InputError: the kind of a claim is not in `CLAIM_KINDS`.
    """
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
