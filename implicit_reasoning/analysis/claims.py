"""Define claims about the mechanism of a model, and compare claims with the truth.

A claim is a statement about a variable and a unit of the model (see `model.units`). Two examples
are "e2 is decodable at layer 1, position r1" and "e2 is moved by head a2.h0". A `Mechanism`
describes a model whose mechanism is known. A `Mechanism` lists the claims that are true and the
claims that are open. The truth of an open claim is unknown or disputed.
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
    "factors": (
        "answers to held-out chains follow a code that the prefixes with one value of the variable "
        "share"
    ),
    "grounded": "the single fact, without any chain, sets the code that these answers follow",
    "memorised": "answers are looked up, not computed through the variable",
    "stored_once": "both hops of a chain look up their facts in the same weights",
    "stored_twice": "the second hop of a chain looks up facts in other weights than the first",
}
_OF_COMPONENTS = {
    "moves": "the head copies the variable from an earlier position to a later one",
    "stores": "the neuron is active only for the fact or chain that the variable names",
    "part": "answers to chains are computed through the head, neuron or edge",
    "idle": "no answer to a chain depends on the head, neuron or edge",
}
STATE_KINDS = frozenset(_OF_STATES)
"""Kinds of claims about states, and about the whole model (from "factors" to "stored_twice")."""

CLAIM_KINDS = _OF_STATES | _OF_COMPONENTS
"""All kinds of claims, each with its meaning."""

OLD_KINDS = {"composes": "grounded"}
"""Present kinds of claims by their old names.

The evidence for `composes` came from facts that no training chain uses as first facts, which is the
evidence for `grounded`.
"""

MIN_CLUSTERS = 20
"""Minimum number of clusters (bridges, facts or prefixes) of a mean.

A mean over fewer clusters is not drawn and supports no claim.

With fewer clusters, the interval of a perfect result may be too wide for `MIN_LOWER_BOUND`.
"""

MIN_LOWER_BOUND = 0.8
"""A positive claim needs a 95% interval whose lower end is at least this number.

If all n clusters agree, the lower end is .025 ** (1 / n): .83 with 20 clusters, .9 with 36 clusters
and .95 with 73 clusters. Models with known mechanisms have 25 to 35 bridges in held-out chains, so
a threshold of .9 would rule out every claim about these models. A threshold of .8 is still strict
for many clusters: with 250 clusters of one example each, 85% of the examples must be right.
"""

MAX_UPPER_BOUND = 0.2
"""A negative claim needs a 95% interval whose upper end is at most this number."""

MAJORITY = 0.5
"""A claim about most cases needs a 95% interval whose lower end is at least this number."""

MIN_TIMES_CHANCE = 3.0
"""Minimum ratio of the lower end of an output's interval to the mean of its null control."""

Verdict = Literal["right", "wrong", "silent"]


@functools.total_ordering
@dataclass(frozen=True, init=False)
class Claim:
    """A statement about a variable and a unit of the model.

    Attributes:
      kind: one of `CLAIM_KINDS`; an old name is replaced by the present one, with a note.
      variable: name of a variable, such as "e2". For claims of kind "stores", the variable is the
        text of a fact or of a chain.
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
          unit: a unit, or the layer of a state if `pos` is given:
            `Claim("used", "e2", 1, "r1")` is `Claim("used", "e2", State(1, "r1"))`.
          pos: position of the state; None if `unit` is a unit.

        Raises:
          InputError: a layer is given without a position, a position is given without a layer, or a
            unit is given with a position.
        """
        if not isinstance(unit, Unit):
            if (unit is None) != (pos is None):
                raise InputError(
                    "a claim about a state needs a layer and a position; got the layer "
                    f"{unit!r} and the position {pos!r}"
                )
            unit = WholeModel() if unit is None or pos is None else State(unit, pos)
        elif pos is not None:
            raise InputError(
                f"got the unit {unit} and the position {pos!r}; omit the position, or replace the "
                "unit by the layer of a state"
            )
        if kind in OLD_KINDS:
            renames.note("kind of claim", kind, OLD_KINDS[kind])
            kind = OLD_KINDS[kind]
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
        """Return the claim as a dict of JSON values, which `claim_from_json` reads."""
        return {"kind": self.kind, "variable": self.variable, "unit": self.unit.to_json()}


def claim_from_json(kept: Mapping[str, Any]) -> Claim:
    """Return the claim that is described by the output of `Claim.to_json`.

    Raises:
      InputError: `kept["unit"]` does not describe a unit.
    """
    return Claim(kept["kind"], kept["variable"], unit_from_json(kept["unit"]))


@dataclass(frozen=True)
class Mechanism:
    """The claims about a model that are true, and the claims that are open.

    Attributes:
      true: the true claims.
      open: the claims whose truth is unknown or disputed.
      closed: kinds of claims for which `true` and `open` are complete. A claim of such a kind is
        false if it is neither in `true` nor in `open`. Claims of all other kinds are open if they
        are not in `true`.
    """

    true: frozenset[Claim]
    open: frozenset[Claim] = frozenset()
    closed: frozenset[str] = field(default_factory=lambda: frozenset(CLAIM_KINDS))

    def holds(self, claim: Claim) -> bool | None:
        """Return whether a claim is true; None if the claim is open.

        Raises:
          InputError: the kind of the claim is not in `CLAIM_KINDS`.
        """
        _check_kind(claim)
        if claim in self.true:
            return True
        return None if claim in self.open or claim.kind not in self.closed else False


def _check_kind(claim: Claim) -> None:
    if claim.kind not in CLAIM_KINDS:
        close = difflib.get_close_matches(claim.kind, CLAIM_KINDS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(
            f"{claim.kind!r} is not a kind of claim{hint}; choose one of {', '.join(CLAIM_KINDS)}"
        )


def above_chance(
    result: xr.Dataset, name: str, null: Mapping[str, Any], *, least: float = -np.inf
) -> xr.DataArray:
    """Return whether measured values are above the values of a null control.

    A measured value is above the control if the lower end of its confidence interval meets three
    conditions:

    - It is at least `least`.
    - It is at least `MIN_TIMES_CHANCE` times the mean of the control.
    - It is greater than the upper end of the control's confidence interval.

    Args:
      result: dataset with the variables `<name>` (means), `<name>_low` and `<name>_high` (ends of
        the intervals). All three contain the measured values and the control, under different
        labels.
      name: name of the output.
      null: for each dimension that distinguishes measured values from the control, the pair (label
        of the measured values, label of the control).
      least: minimum for the lower end of the measured value's interval; default: no minimum.

    Returns:
      A bool array with the dimensions of the output that are not in `null`.
    """
    of_outcome, of_null = ({dim: both[i] for dim, both in null.items()} for i in (0, 1))
    low = result[f"{name}_low"].sel(of_outcome, drop=True)
    mean, high = (result[f"{name}{end}"].sel(of_null, drop=True) for end in ("", "_high"))
    return (low >= least) & (low >= MIN_TIMES_CHANCE * mean) & (low > high)


def known_means(result: xr.Dataset, name: str) -> xr.DataArray:
    """Return the means of an output; nan for means over fewer than `MIN_CLUSTERS` clusters."""
    return result[name].where(has_min_clusters(result, name))


def has_min_clusters(result: xr.Dataset, name: str) -> xr.DataArray:
    """Return whether each mean of an output is computed over at least `MIN_CLUSTERS` clusters."""
    return result[f"{name}_n"] >= MIN_CLUSTERS


def claimed_units(
    kind: str,
    variable: str,
    observed: xr.DataArray,
    null: xr.DataArray,
    unit: Callable[..., Unit],
    *,
    error_rate: float = 0.05,
) -> set[Claim]:
    """Make a claim about each unit whose statistic is significantly above a null distribution.

    The test corrects for the number of units. If the statistics of all units follow the null
    distribution, the probability of any claim is at most `error_rate`.
    `statistics.max_statistic_p_values` describes the test.

    Args:
      kind: kind of the claims.
      variable: variable of the claims.
      observed: the statistic of each unit.
      null: the statistics in draws from the null distribution. The dimensions are those of
        `observed` and "draw".
      unit: function that makes a unit from the labels of `observed`, in the order of the
        dimensions. An example is `lambda layer, neuron: Neuron(layer, neuron)`.
      error_rate: maximum probability that any claim is false.

    Raises:
      InputError: `null` has too few draws for a p-value of `error_rate`.
    """
    draws = null.sizes["draw"]
    if draws < round(1 / error_rate) - 1:
        raise InputError(
            f"an error rate of {error_rate} needs at least {round(1 / error_rate) - 1} draws from "
            f"the null distribution; `null` contains {draws} draws"
        )
    cells = observed.stack(cell=observed.dims)
    nulls = null.stack(cell=observed.dims).transpose("draw", "cell").sel(cell=cells.cell)
    p_values = max_statistic_p_values(
        cells.values.astype(np.float64), nulls.values.astype(np.float64)
    )
    chosen = cells.cell.values[p_values <= error_rate]
    return {Claim(kind, variable, unit(*map(_plain, labels))) for labels in chosen}


def claimed(kind: str, there: xr.DataArray) -> set[Claim]:
    """Make a claim for each true value of a bool array.

    Args:
      kind: kind of all claims.
      there: bool array with the dimensions variable, layer and pos. The labels of a true value are
        the variable and the state of the claim.
    """
    cells = there.transpose("variable", "layer", "pos").to_series()
    return {Claim(kind, *map(_plain, cell)) for cell, value in cells.items() if value}


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def judge(claims: Iterable[Claim], mechanism: Mechanism) -> Verdict:
    """Judge claims by a known mechanism.

    Returns:
      "wrong" if any claim is false; "right" if at least one claim is true and no claim is false;
      "silent" if no claim is true or false.

    Raises:
      InputError: the kind of a claim is not in `CLAIM_KINDS`.
    """
    truths = [mechanism.holds(claim) for claim in claims]
    if False in truths:
        return "wrong"
    return "right" if True in truths else "silent"


def describe(claims: Iterable[Claim], mechanism: Mechanism) -> Mapping[str, list[str]]:
    """Sort claims into true, false and open claims, and return them as text.

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
