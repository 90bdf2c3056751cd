"""Draw attention patterns and the effects of knock-outs."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.analysis.drawing import heat_maps, some_steps
from implicit_reasoning.figures import Figure, new_drawing

UNCHANGED, OTHER = "unchanged", "other"
ALL_HEADS = "all heads"

_MAX_HEADS = 12  # maximum number of heads in a figure
_LEAST_WRITTEN = 0.01  # a head that writes less than this share of the longest vector is not drawn


def _shown_heads(result: xr.Dataset) -> list[tuple[int, int]]:
    """Return the heads that write most at the last step, in the order of blocks."""
    of_group = result.isel(step=-1, group=0)
    size = of_group["written"].max(("query_pos", "key_pos")).transpose("block", "head").values
    best = np.argsort(-size.ravel(), kind="stable")[:_MAX_HEADS]
    best = best[size.ravel()[best] >= _LEAST_WRITTEN * size.max()]
    return [(int(n) // size.shape[1], int(n) % size.shape[1]) for n in sorted(best)]


_MANY = 6  # with more positions, cells have no numbers, and nulls have maps of their own


def _square(
    maps: dict[str, xr.DataArray],
    label: str,
    ncols: int,
    nulls: dict[str, xr.DataArray] | None = None,
) -> Drawing:
    """Draw maps of query positions (from top to bottom) and key positions (from left to right)."""
    if next(iter(maps.values())).sizes["query_pos"] <= _MANY:
        upside_down = {"query_pos": slice(None, None, -1)}
        turned, null = (
            {title: values.isel(upside_down) for title, values in some.items()}
            for some in (maps, nulls or {})
        )
        return heat_maps(
            turned,
            label,
            nulls=null or None,
            ncols=ncols,
            rows="query_pos",
            columns="key_pos",
            width=0.6,
        )
    whole = dict(maps)
    for title, values in (nulls or {}).items():
        whole[f"null: {title}"] = values
    return _without_numbers(whole, label, ncols)


def _without_numbers(maps: dict[str, xr.DataArray], label: str, ncols: int) -> Drawing:
    """Draw maps with many positions; some of the positions are labeled."""
    nrows = -(-len(maps) // ncols)
    drawing, axes = new_drawing(
        1.6 + 1.9 * ncols, 0.5 + 2.1 * nrows, nrows=nrows, ncols=ncols, sharex=True, sharey=True
    )
    for ax, (title, values) in zip(axes, maps.items(), strict=False):
        shown = ax.imshow(values.values, vmin=0, vmax=1, cmap="cividis")
        ticks = range(0, values.sizes["key_pos"], 3)
        names = [str(values.key_pos.values[tick]) for tick in ticks]
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(ticks, names)
        ax.grid(False)
        ax.tick_params(labelsize=7, length=2)
        ax.set_title(title, fontsize=9)
    for index, ax in enumerate(axes):
        ax.set_visible(index < len(maps))
        ax.tick_params(labelbottom=index + ncols >= len(maps))
        ax.set_xlabel("key position" if index + ncols >= len(maps) else "")
        ax.set_ylabel("query position" if index % ncols == 0 else "")
    drawing.colorbar(shown, ax=axes, shrink=0.9, aspect=25, pad=0.02).set_label(label, fontsize=9)
    return drawing


def _lower(values: xr.DataArray) -> xr.DataArray:
    """Replace the edges that do not exist, from later keys, by nan."""
    n_pos = values.sizes["query_pos"]
    exists = xr.DataArray(np.tril(np.ones((n_pos, n_pos), bool)), dims=("query_pos", "key_pos"))
    return values.where(exists)


def pattern_figure(result: xr.Dataset) -> Figure:
    """Draw the mean attention patterns of heads at a few steps."""
    heads, steps = _shown_heads(result), some_steps(result, 3)
    group = str(result.group.values[0])
    maps = {
        f"a{block}.h{head}\nstep {step:,}": _lower(
            result.pattern.sel(step=step, group=group, block=block, head=head)
        )
        for block, head in heads
        for step in steps
    }
    caption = (
        f"The figure has the mean attention of each head over the queries of {group}. A row of a "
        "map is a query position, and its cells are the key positions that it attends to; the "
        "cells of a row sum to 1. A query attends to itself on the diagonal. A head that attends "
        "uniformly, as at step 0, is the null. Attention alone does not show that anything is "
        f"written; see the figure of written vectors. At most {_MAX_HEADS} heads are drawn, those "
        "that write the longest vectors at the last step."
    )
    drawing = _square(maps, "mean attention", 2 * len(steps))
    return Figure("attention", "Where do heads attend?", caption, drawing)


def written_figure(result: xr.Dataset) -> Figure:
    """Draw the lengths of the vectors that heads write through each edge, at the last step."""
    heads, group = _shown_heads(result), str(result.group.values[0])
    last = result.written.isel(step=-1).sel(group=group)
    longest = float(last.max())
    scaled = last / longest if longest > 0 else last
    maps = {
        f"a{block}.h{head}": _lower(scaled.sel(block=block, head=head)) for block, head in heads
    }
    caption = (
        "A cell is the mean length of the vector A v W_O that a head adds to the residual stream "
        f"at the query position (row) from the key position (column), over the queries of {group} "
        f"at step {int(result.step[-1]):,}. Lengths are divided by the longest one, {longest:.3g}. "
        "A position that is attended to and writes next to nothing is an attention sink."
    )
    drawing = _square(maps, "length of the written vector (relative)", 6)
    return Figure("attention_written", "What do heads write?", caption, drawing)


def knock_out_figure(result: xr.Dataset) -> Figure:
    """Draw the share of right answers that change if an edge is knocked out."""
    group = str(result.group.values[0])
    steps = some_steps(result, 3)
    shares, everywhere, null, null_everywhere = (
        known_means(result, name).sel(group=group)
        for name in (
            *("fraction", "everywhere_fraction"),
            *("null_unchanged", "null_everywhere_unchanged"),
        )
    )
    series = {
        f"block {block}": (
            shares.sel(outcome=UNCHANGED, block=block, cut=ALL_HEADS),
            null.sel(block=block, cut=ALL_HEADS),
        )
        for block in result.block.values
    }
    series["all blocks"] = everywhere.sel(outcome=UNCHANGED), null_everywhere
    maps, nulls = {}, {}
    for name, (values, of_null) in series.items():
        for step in steps:
            title = f"{name}\nstep {step:,}"
            maps[title] = 1 - values.sel(step=step)
            nulls[title] = 1 - of_null.sel(step=step)
    caption = (
        "An attention edge from a key position (column) to a query position (row) is knocked out "
        "in all heads of one block, or in all heads of all blocks. A cell is the share of right "
        f"answers that change, over the queries of {group} that are answered correctly without a "
        "knock-out. A high cell means that the answer needs what this edge moves. The null, in "
        "brackets or in maps of its own, is the knock-out of another edge to the same query "
        "position, with the most similar attention. White cells are edges that do not exist, or "
        f"have fewer than {MIN_CLUSTERS} clusters that count. The file analysis/attention.nc has "
        "single heads."
    )
    drawing = _square(maps, "share of changed answers", len(steps), nulls=nulls)
    return Figure("attention_knock_out", "Which attention edges are needed?", caption, drawing)
