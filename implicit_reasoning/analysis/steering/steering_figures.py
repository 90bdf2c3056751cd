"""Draw and compare the results of steering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.figures import GREY, OLIVE, SERIES_COLORS, Figure, new_drawing

FOLLOWED = "followed"
HALF = 0.5


def alpha50(result: xr.Dataset) -> xr.DataArray:
    """Return the smallest alpha at which half of the answers follow, for every direction.

    The share is interpolated linearly between the measured alphas. If it stays below one half, the
    result is infinite. It is nan if there are fewer than `MIN_CLUSTERS` clusters.

    Args:
      result: the result of the instrument `steering`.
    """
    share = known_means(result, "fraction").sel(outcome=FOLLOWED, drop=True)
    alphas = result["alpha"].values
    return xr.apply_ufunc(
        lambda values: _first_crossing(values, alphas),
        share,
        input_core_dims=[["alpha"]],
        vectorize=True,
    )


def _first_crossing(share: np.ndarray, alphas: np.ndarray) -> float:
    if np.isnan(share).any():
        return np.nan
    above = np.flatnonzero(share >= HALF)
    if not len(above):
        return np.inf
    first = above[0]
    if not first:
        return float(alphas[0])
    return float(np.interp(HALF, share[first - 1 : first + 1], alphas[first - 1 : first + 1]))


def followed_at(result: xr.Dataset, divergence: float) -> xr.DataArray:
    """Return the largest share of followed answers with at most a given side effect.

    Between measured alphas, share and side effect are interpolated linearly.

    Args:
      result: the result of the instrument `steering`.
      divergence: the largest allowed mean KL divergence of unrelated chains, in nats.

    Returns:
      The share, with the dimension `end` (mean, low, high): the mean, and the ends of the interval
      of the share at the same point of the curve. The intervals are clustered by the new bridge.
      They do not include the uncertainty of the side effect.
    """
    known = known_means(result, "fraction").notnull()
    ends = xr.concat(
        [result[f"fraction{end}"].where(known) for end in ("", "_low", "_high")],
        dim=xr.Variable("end", ["mean", "low", "high"]),
    ).sel(outcome=FOLLOWED, drop=True)
    return xr.apply_ufunc(
        lambda curves, costs: _best_within(curves, costs, divergence),
        ends,
        known_means(result, "side_divergence"),
        input_core_dims=[["end", "alpha"], ["alpha"]],
        output_core_dims=[["end"]],
        vectorize=True,
    )


def _best_within(
    curves: Float[np.ndarray, "end alpha"], costs: Float[np.ndarray, " alpha"], most: float
) -> Float[np.ndarray, " end"]:
    """Return the point with the largest mean on the piecewise linear curve up to a cost.

    The first row of `curves` is the mean. The rows are nan if there is no such point.
    """
    if np.isnan(curves).any() or np.isnan(costs).any():
        return np.full(len(curves), np.nan)
    points = list(curves.T[costs <= most])
    for i in range(len(costs) - 1):
        low, high = sorted((i, i + 1), key=lambda k: costs[k])
        if costs[low] <= most < costs[high]:
            part = (most - costs[low]) / (costs[high] - costs[low])
            points.append(curves[:, low] + part * (curves[:, high] - curves[:, low]))
    return max(points, key=lambda point: point[0], default=np.full(len(curves), np.nan))


def steering_figures(result: xr.Dataset) -> list[Figure]:
    """Draw the share of followed answers over alpha, and over the side effect, at the last step."""
    layer, step = int(result["layer"][0]), int(result["step"][-1])
    last = result.isel(step=-1).sel(layer=layer)
    follows = known_means(last, "fraction").sel(outcome=FOLLOWED)
    side = known_means(last, "side_divergence")
    half = alpha50(last)

    def by_alpha(ax: Axes, at: dict[str, Any], style: dict[str, Any]) -> None:
        if np.isfinite(found := float(half.sel(at))):
            style = style | {"label": f"{style['label']} ({found:.2g})"}
        else:
            style = style | {"label": f"{style['label']} (never)"}
        ax.plot(last["alpha"], follows.sel(at), **style)
        low, high = (last[f"fraction_{e}"].sel(outcome=FOLLOWED, **at) for e in ("low", "high"))
        ax.fill_between(last["alpha"], low, high, color=style["color"], alpha=0.12, linewidth=0)

    def by_side(ax: Axes, at: dict[str, Any], style: dict[str, Any]) -> None:
        ax.plot(side.sel(at), follows.sel(at), marker="o", markersize=3, **style)
        ax.set_xscale("symlog", linthresh=0.01, linscale=0.4)
        ax.set_xlim(left=0)

    about = (
        f"A vector is added to S[{layer}, pos] of training chains that are answered correctly, at "
        f"step {step:,}. It stands for another bridge. All vectors have the norm alpha times the "
        "distance between the class means of the two bridges. 'replace' also subtracts the vector "
        "of the old bridge. A chain follows if its answer becomes that of the other bridge, whose "
        "fact with r2 is in training chains (upper row) or only a single fact (lower row). "
    )
    nulls = (
        "The dashed lines are null controls: random vectors, and the class mean of a third bridge. "
        f"Panels with fewer than {MIN_CLUSTERS} other bridges are empty."
    )
    first = (
        "The number after a name is the alpha at which half of the answers follow in the panel. "
        "Bands are 95% intervals, clustered by the other bridge. "
    )
    second = (
        "The x axis is the side effect: the KL divergence of unrelated chains to which the same "
        "vector is added, in nats. Each point is one alpha. At equal side effect, the higher curve "
        "is the better direction. "
    )
    return [
        Figure(
            "steering",
            "How many answers follow a direction?",
            about + first + nulls,
            _panels(last, by_alpha, "alpha", legends=True),
        ),
        Figure(
            "steering_side_effects",
            "Which direction has the smallest side effects?",
            about + second + nulls,
            _panels(last, by_side, "KL of unrelated chains (nats)", legends=False),
        ),
    ]


def _panels(
    last: xr.Dataset,
    draw: Callable[[Axes, dict[str, Any], dict[str, Any]], None],
    label: str,
    *,
    legends: bool,
) -> Any:
    """Draw one panel for each group (row) and edit (column), and a line for each direction."""
    names = [str(name) for name in last["direction"].values]
    palette = (*SERIES_COLORS, OLIVE)
    nulls = {name: "--" if n == 0 else ":" for n, name in enumerate(names[-2:])}
    groups, edits = last["group"].values, last["edit"].values
    drawing, axes = new_drawing(
        3.6 + 3.3 * len(edits),
        0.6 + 2.7 * len(groups),
        nrows=len(groups),
        ncols=len(edits),
        sharey=True,
    )
    places = [(group, edit) for group in groups for edit in edits]
    for ax, (group, edit) in zip(axes, places, strict=True):
        for number, name in enumerate(names):
            style = {"label": name, "color": palette[number % len(palette)], "linewidth": 1.5}
            if name in nulls:
                style |= {"color": GREY, "linestyle": nulls[name]}
            draw(ax, {"direction": name, "group": group, "edit": edit}, style)
        ax.set_title(f"{group}, {edit}", fontsize=10)
        ax.set_ylim(-0.02, 1.02)
        ax.tick_params(labelsize=8)
        if legends:
            ax.legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    for ax in axes[-len(edits) :]:
        ax.set_xlabel(label)
    for ax in axes[:: len(edits)]:
        ax.set_ylabel("share of followed answers")
    if not legends:
        handles, labels = axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    return drawing
