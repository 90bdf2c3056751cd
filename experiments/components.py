r"""Which parts of the model compute the answer, and when do they form?

    python experiments/components.py --out=results/components

The arms with four worlds and two initializations each are `composition`, `ladder`, `ladder_early`
(early supervision of single facts) and `in_context_by_doubling`. The arms with three runs,
`shadow`, `scrambled` and `modular_addition_larger_eps`, are shown as curves and support no claim.
The runs are those of `arms.py`. `in_context_by_doubling` is `in_context` with eight checkpoints per
doubling of the step, because its heads form before step 250. `modular_addition_larger_eps` is the
present configuration `modular_addition.py:pocket`.

Runs are trained and measured in separate processes, `--jobs` in parallel. The script resumes run by
run: runs with results of the present version in `--out` are not measured again. The tables and
figures show all results in `--out`.

Checkpoints
-----------
`stages.py` chooses ten checkpoints of a run and defines its stages `untrained`, `memorised`, `half`
and `end`. In modular addition, all saved checkpoints are measured, because its instruments are
cheap. `ablation`, `neuron_keys` and `fact_neurons` measure only the stages, because they take most
of the time.

Decision rules
--------------
The rules were written before any run was measured for this study. While the instruments were
written, some of them were tried on the runs `ladder_w0_i0` and `ladder_early_w0_i0`, and on runs of
`in_context` and `modular_addition` that are not part of the study. Two definitions were changed
after the first run of `in_context_by_doubling`. A half-time was the step at half of the last value,
which is step 0 for a curve that begins above it; it is now the step halfway between first and last
value. In rule 1 (b), drops and rises were compared per interval between checkpoints, although
intervals differ in length; they are now compared per unit of log(step + 1). Two choices of what
is measured also came after the first measurements, to save time: `attribution` has only the pairs
with another bridge in training chains, and `ablation`, `neuron_keys` and `fact_neurons` measure
only the stages.

Intervals of one run are 95% intervals clustered by bridge or fact, as the instruments compute them.
Intervals over runs are 95% t intervals over the means of the four worlds. A rule about runs is
answered "yes" for an arm if it holds in at least 7 of its 8 runs, "no" if it fails in at least 7,
and "open" otherwise. With fewer than 8 runs, there is no answer. No p value is corrected for the
number of questions. A mean over fewer than 20 clusters counts as missing. "Fails" includes runs in
which a number is missing, unless the rule says otherwise.

1. The induction bump (`in_context_by_doubling`; `head_scores`, test rows). The head of a run is the
   one with the highest attention to the target "induction" at the last checkpoint. It is an
   induction head if the lower end of this attention is at least .5 and above the upper end of the
   null (other keys). Half-times are the steps at which a curve first crosses the middle between its
   first and its last value, interpolated between checkpoints in log(step + 1). (a) The heads form
   with the accuracy if the head is an induction head and the half-times of its attention and of the
   accuracy differ by at most a factor of 2. (b) The loss drops while the head forms if the steepest
   drop of the loss in log(step + 1), between two consecutive measured checkpoints, is in the
   interval in which the attention rises most steeply, or in a neighboring interval. (c) The
   previous-token head comes first if the half-time of the highest attention to the previous token
   is before that of the induction head.
2. Modular addition: no claim. The ends of the phases (`fourier_figures.phase_ends`) stand beside
   the published ones. The table says whether the restricted loss falls to half of its maximum
   before the test loss does, and what the null says (as many other frequencies).
3. One store for both hops? (chain arms; `fact_neurons`, order "effect above the mean of facts".)
   The overlap is the share of the 64 strongest neurons for the first hop that are among the 64
   strongest for the last hop. The null is the overlap with the last hops of other facts. The answer
   is "one store" if the interval over worlds of the overlap is above .5, "in part" if the interval
   of overlap minus null is above 0, "separate" if this interval contains 0 and its upper end is
   below .1, and otherwise "open". A run counts at a stage if at least 20 clusters of facts are
   answered on both hops.
4. Where do gradients mislead? (chain arms; `attribution`, pairs with another bridge.) For each
   estimate (AtP, AtP*, RelP, integrated gradients) and kind of cells, the number is the mean rank
   correlation with exact patching over pairs. At a stage, the estimate is "reliable" if the
   interval over worlds is above .9, "misleading" if it is below .8, and otherwise "open". It
   misleads more while the model learns if the interval over worlds of `half` minus `end`, paired by
   run, is below 0. Integrated gradients are complete at a stage if the upper end over worlds of the
   mean incompleteness of every layer is at most .01. Null: the rank correlation is 0 for an
   estimate that is unrelated to the effects; the correlation at `untrained` is shown.
5. Which heads move what, and when? (chain arms; claims of `head_moves` and `ablation`.) A variable
   is moved in a run if some head has the claim `moves` for it at the end. The bridge is moved if e2
   or its cluster is. The mover is used if the same head also has the claim `part`. The head comes
   before the answers if the first measured checkpoint with the claim about the bridge is not after
   the stage `half`. Null: claims at step 0, which must be none.
6. Neurons that store facts (chain arms; claims `stores` of `neuron_keys`). Facts are stored in
   single neurons in a run if at least one claim is made at the end. The share of neurons whose best
   key is a fact (F1 of at least .5) stands beside the same share with permuted facts.
7. Enrichment at e1 (chain arms; `enrichment`, group of facts in training chains). The tails of e1
   are enriched in a run at the end if, at some layer from 1 on, the lower end of their share is
   above the upper end of the null (tails of another entity) and at least 3 times its mean. The
   first MLP writes them if, with the MLP of the first block off at e1, the share minus its null at
   layer 1 is at most half of that with nothing off. The answers need the MLPs at e1 if, with all
   MLPs off there, the upper end of the share of right chains is below the lower end with nothing
   off. The last two rules are asked of enriched runs only: they fail in other runs.
8. Composition through a shared code (chain arms; `composition_progress`, layer 1). A run answers
   through the code at a stage if, on held-out chains (test_ii), the accuracy with only the code
   (restricted) has a lower end of at least .8, and that with the code of another bridge an upper
   end of at most .2. It needs the code if the accuracy without the code (excluded) has an upper end
   of at most .2. The circuit is there before the answers if, at some measured checkpoint, the
   restricted accuracy on train_ii is at least .5 while the accuracy on test_ii is below .5. In
   `ladder` and `ladder_early`, the second hop waits for the fact if, over worlds, the interval of
   restricted minus own accuracy on test_c0 at the end is above .2.
9. Steering (chain arms; `steering` at S[1, r1], edit "replace", relations in training, at the end).
   The number is the largest share of followed answers with a KL divergence of unrelated chains of
   at most .1 nats. A direction steers if the interval over worlds of this share minus that of the
   higher null (random, wrong bridge) is above 0 and the interval of the share is above .5. Class
   means beat another direction if the interval over worlds of the difference, paired by run, is
   above 0, and lose if it is below 0.

Smoke test:
    python experiments/components.py --scale=smoke --arms=composition --worlds=1 --inits=1 \
        --jobs=0 --runs=runs/smoke --out=runs/smoke/components
"""

from __future__ import annotations

import sys
from pathlib import Path

import archive
import numpy as np
import xarray as xr
from archive import about, analyses, curves, run_arms
from components_figures import draw_all
from components_tables import write_tables
from composition_phases import Part, part_of
from reasoning_or_shortcut_arms import read_arms
from stages import chosen_steps, stages, steps_of_stages

from implicit_reasoning.analysis.api import find_instrument
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.components.fact_neurons import ORDERS
from implicit_reasoning.analysis.components.key_scores import ACTIVITIES
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.steering.steering_figures import alpha50, followed_at
from implicit_reasoning.config import Flag
from implicit_reasoning.model.units import Head
from implicit_reasoning.runs import Run

FLAGS = {**archive.FLAGS, "out": Flag(kind=Path, default=Path("results/components"))}
MOVED = ("e1", "r1", "e2", "cluster", "prefix")
"""Variables of the claims `moves`."""

STEERING_COSTS = (0.01, 0.1, 1.0)
"""KL divergences of unrelated chains, in nats, at which directions are compared."""

ATTRIBUTION = Part(("agreement", "incompleteness"), {"donor": "pair"})
OF_CHAINS = {
    "bridge_attribution": ATTRIBUTION,
    "head_moves": Part(("identified", "mass", "size"), {}),
    "ablation": Part(("fraction", "correct"), {"outcome": "unchanged", "pos": "all"}),
    "neuron_keys": Part(("kinds", "null_kinds", "n_states"), {"activity": ACTIVITIES[0]}),
    "fact_neurons": Part(
        (
            *("overlap_by_count", "null_overlap_by_count", "overlap", "null_overlap"),
            *("chance_overlap", "needed", "found"),
        ),
        {"order": ORDERS[1]},
    ),
    "enrichment": Part(("attributes", "fact_right", "chain_right"), {}),
    "composition_progress": Part(("loss", "correct"), {}),
    "steering": Part(("fraction", "side_divergence"), {"outcome": "followed", "edit": "replace"}),
}
IN_CONTEXT = {
    "head_scores": Part(
        ("attention", "other_keys", "loss", "correct", "copying", "offset_attention"), {}
    ),
}
OF_ADDITION = {
    "fourier_progress": Part(
        (
            *("full_loss", "correct", "restricted_loss", "excluded_loss", "null_restricted_loss"),
            *("null_excluded_loss", "norm", "is_key", "key_norm", "gini", "squared_weights"),
        ),
        {},
    ),
    "addition_attribution": ATTRIBUTION,
}
_PAIRS = Path(__file__).with_name("components_pairs.py")
PATHS = {
    "bridge_attribution": f"{_PAIRS}:BridgeAttribution",
    "addition_attribution": f"{_PAIRS}:AdditionAttribution",
}
"""Import paths of the instruments that are not built in."""

AT_STAGES = ("ablation", "neuron_keys", "fact_neurons")
"""Instruments that are measured at the stages only, because they take most of the time."""

VERSION = 1
"""Version of the saved data."""


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then write the tables and draw the figures."""
    out = run_arms("components", argv, FLAGS, measuring, kept, VERSION)
    arms = read_arms(out)
    write_tables(out, arms)
    draw_all(out, arms)


def is_addition(run: Run) -> bool:
    """Return whether the task of a run is modular addition."""
    return bool(run.config.task.name == "modular_addition")


def instruments(run: Run) -> dict[str, Part]:
    """Return the instruments that can be used for a run, and what is kept of their results."""
    if is_addition(run):
        return OF_ADDITION
    parts = OF_CHAINS if "r2" in run.dataset.truth else IN_CONTEXT
    return {name: part for name, part in parts.items() if can_be_used(name, run)}


def can_be_used(name: str, run: Run) -> bool:
    """Return whether an instrument can be used for the task of a run."""
    try:
        find_instrument(PATHS.get(name, name)).examples(run.model, run.dataset)
    except NotApplicable:
        return False
    return True


def measuring(run: Run) -> list[list[str]]:
    """Return the commands that measure a run, one for each set of checkpoints."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name in instruments(run):
        names.setdefault(tuple(steps_of(run, name)), []).append(PATHS.get(name, name))
    return analyses(run, names)


def steps_of(run: Run, name: str) -> list[int]:
    """Return the checkpoints that an instrument measures."""
    steps = measured_steps(run)
    return steps_of_stages(run, steps) if name in AT_STAGES else steps


def measured_steps(run: Run) -> list[int]:
    """Return the checkpoints to measure."""
    return list(run.steps) if is_addition(run) else chosen_steps(run)


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the curves, the stages, the claims and the parts of a run's results."""
    steps = measured_steps(run)
    nodes = {"/": about(run, world, init), "training": curves(run), "stages": stages(run, steps)}
    results = {}
    for name, part in instruments(run).items():
        # There may be results of other steps.
        results[name] = run.result(name).sel(step=steps_of(run, name))
        node = "attribution" if name in PATHS else name
        nodes[node] = small(part_of(results[name], part))
    if "steering" in results:
        nodes["steering"] = steering(nodes["steering"], results["steering"])
    if "neuron_keys" in results:
        count = results["neuron_keys"].sizes["neuron"]
        nodes["neuron_keys"] = nodes["neuron_keys"].assign(n_neurons=float(count))
    if "head_moves" in results:
        nodes["claims"] = claims(results)
    return xr.DataTree.from_dict(
        {name: significant(node).expand_dims("run") for name, node in nodes.items()}
    )


def small(part: xr.Dataset) -> xr.Dataset:
    """Return a part with truth values as numbers, which can be missing in other runs."""
    return part.map(lambda x: x.astype("f4") if x.dtype.kind == "b" else x)


def significant(arrays: xr.Dataset, digits: int = 4) -> xr.Dataset:
    """Round numbers to some significant digits, because losses span many orders of magnitude."""

    def rounded(x: xr.DataArray) -> xr.DataArray:
        if x.dtype.kind != "f":
            return x
        size = np.floor(np.log10(np.maximum(np.abs(x.values), 1e-30)))
        scale = 10.0 ** (digits - 1 - np.where(np.isfinite(size), size, 0))
        return x.copy(data=(np.round(x.values * scale) / scale).astype("f4"))

    return arrays.map(rounded)


def steering(part: xr.Dataset, result: xr.Dataset) -> xr.Dataset:
    """Return the followed answers at equal side effects, and the curves at the last checkpoint."""
    at = {"edit": "replace", "layer": 1}
    shares = [followed_at(result, cost).sel(at, drop=True) for cost in STEERING_COSTS]
    costs = xr.Variable("cost", list(STEERING_COSTS))
    curves_at_end = part.sel(layer=1, drop=True).isel(step=-1, drop=True)
    return curves_at_end.assign(
        followed_at=xr.concat(shares, costs), alpha50=alpha50(result).sel(at, drop=True)
    )


def claims(results: dict[str, xr.Dataset]) -> xr.Dataset:
    """Return the claims at each checkpoint.

    `moves` and `part` are 1 or 0 for each head. `stores` and `part_neurons` are numbers of claims.
    Values are nan at checkpoints that the instrument did not measure.
    """
    moves = results["head_moves"]
    blocks, heads = (moves[name].values.tolist() for name in ("block", "head"))
    coords = {"block": blocks, "head": heads}

    def made(name: str) -> dict[int, set[Claim]]:
        instrument, result = find_instrument(name), results[name]
        steps = result["step"].values.tolist()
        return {step: instrument.claims(result.sel(step=step)) for step in steps}

    def of_heads(found: dict[int, set[Claim]], kind: str, variable: str) -> xr.DataArray:
        table = [
            [[float(Claim(kind, variable, Head(b, h)) in at) for h in heads] for b in blocks]
            for at in found.values()
        ]
        return xr.DataArray(table, {"step": list(found), **coords}, ("step", "block", "head"))

    moving = made("head_moves")
    of_variables = [of_heads(moving, "moves", variable) for variable in MOVED]
    arrays = {"moves": xr.concat(of_variables, xr.Variable("variable", list(MOVED)))}
    if "ablation" in results:
        arrays["part"] = of_heads(made("ablation"), "part", "answer")
    for name, instrument in (("stores", "neuron_keys"), ("part_neurons", "fact_neurons")):
        if instrument in results:
            counts = {step: float(len(at)) for step, at in made(instrument).items()}
            arrays[name] = xr.DataArray(list(counts.values()), {"step": list(counts)}, ("step",))
    return xr.merge([one.rename(name) for name, one in arrays.items()], join="outer")


if __name__ == "__main__":
    main(sys.argv[1:])
