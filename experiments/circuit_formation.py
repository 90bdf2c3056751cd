r"""Which edges compute the answer, when do they form, and do estimates find them?

    python experiments/circuit_formation.py --out=results/circuits

The arms with four worlds and two initializations each are `composition`, `ladder`, `ladder_early`
(early supervision of single facts) and `scrambled`. The arms with three runs are shown as curves
and support no claim: `without_id_triples`, `shadow`, `greater_than`, `indirect_object` and
`in_context`. `ladder_taught` continues the runs of `ladder` on a task in which the cold facts begin
ordinary chains. It answers question 6 only. The runs are those of `arms.py`.

The prompts of a pair differ in one token (`circuit_formation_pairs.py`); in chains, it is e1.
Circuits are found on half of the clusters of the first group of pairs (training chains) and
measured on pairs of the other clusters. Clusters of cold facts (test_c0) find no circuit, because
they are few. `stages.py` chooses ten checkpoints of a run and defines its stages. In `composition`,
half of the held-out chains are answered before the training chains are memorized, so the stage
`half` comes before `memorised`. Routes are measured at all checkpoints. Estimates and ACDC are
measured at the stages only, because ACDC takes most of the time; its sweep has two thresholds and
five orders of the edges. In `greater_than` the accuracy stays low, so only the first and the last
checkpoint are stages. In `indirect_object`, the names stand at the same positions in all prompts.

Decision rules
--------------
The rules were written before any run was measured for this study. While the instruments were
written, some of them were tried on the runs `ladder_w0_i0` and `ladder_early_w0_i0`.

Before the first run, a review of the study led to these changes: the clusters of cold facts are
kept apart (question 4), routes are measured at all checkpoints (question 2), nulls of routes are
means over draws, and a rule no longer holds for a route that does not form or for a circuit of all
edges.

Intervals of one run are 95% intervals clustered by bridge; in tasks without chains, by the answer,
and in `greater_than`, by the start year. Intervals over runs are 95% t intervals over the means of
the four worlds. A rule about runs is answered "yes" for an arm if it holds in at least 7 of its 8
runs, "no" if it fails in at least 7, and "open" otherwise. With fewer than 8 runs, there is no
answer. No p value is corrected for the number of questions. A mean over fewer than 20 clusters
counts as missing. "Fails" includes runs in which a number is missing, unless the rule says
otherwise. The size of a circuit is the smallest measured number of edges at positions with a mean
faithfulness of at least .9 on the first group; it is missing if no measured circuit but that of all
edges is faithful.

1. Is the circuit sparse at the end? A run has a sparse circuit if the size of the circuit that
   grows from exact scores is at most a quarter of the edges that can matter, which are those whose
   sender differs between the prompts. The null is the size for a random order (one draw).
2. When does the route through r1 form, and how suddenly? (chains; `routes`.) The number is the
   faithfulness of the route through r1 on training chains. A run answers through r1 at the end if
   its lower end is at least .8. The null cuts as many random edges. This route is necessary for
   composing, and not sufficient: a model that memorizes a code for each prefix (e1, r1) at r1 has
   it, too. Question 8 of `components.py` tells them apart. The route forms with the answers if its
   half-time and that of the accuracy on test_ii differ by at most a factor of 2; half-times are
   those of `components.py`, and an accuracy that rises by .1 or less has none. It forms suddenly if
   it rises by half of its range between two consecutive checkpoints that differ by at most a factor
   of 1.5. If it rises by so much between checkpoints that differ by more, the answer of the run is
   missing. Both rules fail in a run that does not answer through r1 at the end.
3. Does the memorizing circuit shrink, or is it bypassed? (chains.) The memorizing circuit is the
   route around r1. It is bypassed in a run if its faithfulness on training chains has a lower end
   of at least .5 at `memorised` and an upper end of at most .2 at the end. It remains if the lower
   end at the end is at least .5. The circuit shrinks if the interval over worlds of the logarithm
   of size at the end divided by size at `memorised` is below 0, and grows if it is above 0. The
   accuracy on test_ii at `memorised` stands beside it: where it is high, memorization is not a
   stage of its own.
4. Are cold facts answered by the circuit of other chains? (`ladder`, `ladder_early`.) The circuit
   of training chains, at its size, is run on chains of test_ii and of test_c0 that the model
   answers. It is the same circuit if the interval over worlds of faithfulness on test_c0 minus that
   on test_ii is above -.1, and another one if it is below -.1. If fewer than 20 bridges of test_c0
   are answered in a run, the run is missing. `ladder` answers few of them, so it may stay missing.
5. Which estimates agree with exact scores? For each estimate and stage, the number is the rank
   correlation of absolute scores with absolute exact scores over all edges and positions whose
   sender differs between the prompts; a run in which fewer than 20 clusters count is missing. An
   estimate is "reliable" if the interval over worlds is above .9, "misleading" if it is below .8,
   and otherwise "open". The null is the size of the change of the sender. ACDC agrees if the
   interval of its mean overlap with the exact circuit of equal size, over thresholds and orders, is
   above .8; empty circuits do not count.
6. Does further training on chains of cold facts enhance the circuit that is there, or build another
   one? (`ladder_taught`.) The number is the Jaccard index between the circuit of the first
   checkpoint of the further training and that of the last one, both of the size of the first (a
   quarter of all edges if that is missing). The reference is the index between the last two
   measured checkpoints of `ladder` before, at the same size. It enhances the circuit if the
   interval over worlds of index minus reference is above -.1, and builds another one if the
   interval is below -.3.
7. Is the circuit that grows from exact scores complete, minimal and stable at the end? (`checks`.)
   The circuit has the smallest size with a faithfulness of at least .9 on the pairs that found it.
   On other pairs, it is complete in a run if its incompleteness is at most .1, and minimal if at
   least .9 of its edges are needed. It is stable if the mean Jaccard index of circuits from
   resamples is at least .8. A circuit of all edges that can matter is missing, because it is all of
   this by construction. The nulls are circuits of equal size by magnitude and at random.

Smoke test:
    python experiments/circuit_formation.py --scale=smoke --arms=composition --worlds=1 --inits=1 \
        --jobs=0 --runs=runs/smoke --out=runs/smoke/circuits
"""

from __future__ import annotations

import sys
from pathlib import Path

import archive
import xarray as xr
from archive import about, analyses, curves, run_arms
from circuit_formation_figures import draw_all
from circuit_formation_tables import write_tables
from composition_phases import Part, part_of
from reasoning_or_shortcut_arms import read_arms
from stages import chosen_steps, stages, steps_of_stages

from implicit_reasoning.config import Flag
from implicit_reasoning.runs import Run

FLAGS = {**archive.FLAGS, "out": Flag(kind=Path, default=Path("results/circuits"))}
VERSION = 1
"""Version of the saved data."""

DISCOVERY = Part(("faithfulness", "kept", "rank", "score"), {})
ESTIMATES = Part(("score", "acdc_size", "acdc_overlap", "n_pairs", "n_clusters"), {})
PARTS = {
    "discovery": DISCOVERY,
    "estimates": ESTIMATES,
    "routes": Part(("faithfulness", "kept"), {}),
    "checks": Part(("size", "incompleteness", "needed", "stability", "n_pairs", "n_clusters"), {}),
}
CLASSES = {
    "discovery": "instruments.py:Discovery",
    "estimates": "instruments.py:Estimates",
    "routes": "instruments.py:Routes",
    "checks": "checks.py:Checks",
    "discovery_of_years": "instruments.py:YearsDiscovery",
    "estimates_of_years": "instruments.py:YearsEstimates",
    "checks_of_years": "checks.py:YearsChecks",
}
"""The class of each instrument, and the end of the name of its file."""

_FILES = Path(__file__).with_suffix("")
_OF_ALL = ("discovery", "estimates", "checks")


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then write the tables and draw the figures."""
    out = run_arms("circuit_formation", argv, FLAGS, measuring, kept, VERSION)
    arms = read_arms(out)
    write_tables(out, arms)
    draw_all(out, arms)


def instruments(run: Run) -> dict[str, str]:
    """Return the instruments of a run: the name of the kept part, and of the instrument."""
    years = "_of_years" if run.config.task.name == "greater_than" else ""
    found = {name: f"{name}{years}" for name in _OF_ALL}
    return found | ({"routes": "routes"} if "r2" in run.dataset.truth else {})


def steps_of(run: Run, part: str) -> list[int]:
    """Return the checkpoints at which a part is measured."""
    if part == "routes":  # all checkpoints, to see how suddenly a route forms
        return list(run.steps)
    steps = chosen_steps(run)
    if part == "checks":
        return steps[-1:]
    return steps_of_stages(run, steps) if part == "estimates" else steps


def measuring(run: Run) -> list[list[str]]:
    """Return the commands that measure a run, one for each set of checkpoints."""
    paths: dict[tuple[int, ...], list[str]] = {}
    for part, name in instruments(run).items():
        paths.setdefault(tuple(steps_of(run, part)), []).append(f"{_FILES}_{CLASSES[name]}")
    return analyses(run, paths)


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the curves, the stages and the parts of a run's results."""
    nodes = {
        "/": about(run, world, init),
        "training": curves(run),
        "stages": stages(run, chosen_steps(run)),
    }
    for part, name in instruments(run).items():
        result = run.result(name).sel(step=steps_of(run, part))
        nodes[part] = part_of(result, PARTS[part])
    nodes = {name: small(node).expand_dims("run") for name, node in nodes.items()}
    return xr.DataTree.from_dict(nodes)


def small(part: xr.Dataset) -> xr.Dataset:
    """Return a part in single precision, with whole numbers that can be missing in other runs."""
    return part.map(lambda x: x.astype("f4") if x.dtype.kind in "fbiu" else x)


if __name__ == "__main__":
    main(sys.argv[1:])
