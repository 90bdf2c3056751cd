r"""If the prime minister of a country is replaced, who is then married to the prime minister?

    python experiments/editing.py --out=results/editing

A fact (e1, r1) -> b gets the new tail b'. The study asks which chains use the new tail: those with
the fact at the first hop, (e1, r1, r2), and those with the fact at the second hop, (e0, r0, r1).
The arms with four worlds and two initializations each are `composition`, `ladder` and
`ladder_looped` (two loops). `ladder_early` (early supervision of single facts) and
`ladder_chain_of_thought` (the model outputs the bridge before the answer) have three runs; they are
shown as curves and support no claim. The runs are those of `arms.py`.

There are 100 edits in each run, in equal numbers for the roles of facts that the world has.
`stages.py` defines the stages of a run. At `memorised` and `half`, facts are edited by a rank-one
edit (ROME) of the first block at r1, and by edits of states, which change no fact. At the end, all
editors of the instrument `knowledge_editing` are used; of these, `tuned W_out` is fine-tuning that
is constrained to one matrix. The untrained model answers no fact, so no prompt counts there and
nothing is measured. Locality is that of 300 other prompts; the mean is over edits, so more prompts
would cost time and say little more.

Further rank-one edits of I facts are made at the end. 40 facts are edited at every block and at
both positions of the prompt (e1, r1). 60 facts are edited through one chain that uses the fact at
the second hop, in the last block, with the key at the last position of the chain. 32 facts are
edited back, and edited one after another. There, locality is that of 1,000 other prompts.

With a chain of thought, answers are generated token by token: the model reads the bridge that it
has output. Fine-tuning with chains is left out there, because it teaches answers of one token. An
in-context baseline (the new fact in the prompt) is not applicable, because the prompts of these
tasks have no place for another fact.

Published numbers stand beside ours. They are of other models and other sets of edits.

Decision rules
--------------
The rules were written before any run of an arm that supports a claim was measured for this study.
While the instruments were written, they were tried on the run `ladder_early_w0_i0`, which is shown
as a curve. Before the rules were written, the editors had been tried on it at the last step: rank-
one edits succeed, about .7 of the first-hop chains and none of the second-hop chains follow, and
fine-tuning reaches fewer first-hop chains. Rule 4 (e) and its instrument were added after the other
instruments had been tried on this run. A review then led to these changes, after the instruments
had been tried and before any run of an arm was measured. (1) The edits of rules 4 (e), 5, 7 and 8
are those of I facts. Before, roles were mixed, and the model answers chains with O facts by
accident only. (2) In rule 8, the interval of locality is over prompts. Before, it had no width,
because all edits of one model have the same locality. (3) In rule 7, an edit counts only if the
first edit succeeds. (4) The interval of efficacy is that of yes-or-no outcomes (Clopper-Pearson).
(5) The read strength is that of prompts and edits that count. The thresholds are those of claims
(.8, .2), which are older than the instruments. How many first-hop chains follow depends on how
certain of b' the search must be when it ends (`ValueSearch.enough`); the study uses the default.

Intervals of one run are 95% intervals clustered by edit. Intervals over runs are 95% t intervals
over the means of the four worlds. A rule about runs is answered "yes" for an arm if it holds in at
least 7 of its 8 runs, "no" if it fails in at least 7, and "open" otherwise. With fewer than 8 runs,
there is no answer. No p value is corrected for the number of questions. A mean over fewer than 20
edits counts as missing, and a rule fails where a number is missing; the number of such runs is
written beside the answer. A prompt counts if the model answers it correctly before the edit. All
scores except efficacy are those of edits that succeed. By default, the editor is `rome`, and the
facts have the role I (ordinary facts).

1. What follows an edit at the end? (a) Edits succeed if the lower end of efficacy is at least .8.
   (b) A hop follows if the lower end of its share is at least .8, and does not follow if the upper
   end is at most .2. (c) The old answer remains at a hop if the lower end of its share is at least
   .8. (d) Edits are specific if the lower ends of "same entity", "same relation" and "locality" are
   all at least .8. (e) The nulls change nothing if the upper ends of efficacy and of both hops of
   random changes are at most .2. (f) Facts of another role (O, seen in no chain; C, seen in two
   chains at the first hop only, and in as many as I facts at the second hop) follow more, or less,
   at a hop if the interval over worlds of their share minus that of I facts is above, or below, 0.
   (g) Facts in more training chains follow more, or less, at a hop if the interval over worlds of
   Spearman's correlation is above, or below, 0. The correlation is over the edits of I facts of a
   run, between the number of training chains that use the fact at that hop and the share. Roles
   differ in the number of chains (O has none, C has two at the first hop only), so (g) uses one
   role only. If the share or the number of chains is the same for all edits of too many runs, there
   is no variation and no answer.
2. Does training change what an edit reaches? A score changes if the interval over worlds of `end`
   minus `memorised`, paired by run, excludes 0. The stages of an arm are shown in the order of the
   median step at which its runs reach them. In `composition`, `half` comes before `memorised`. In
   arms in which `memorised` comes before `half`, most chains that count at `memorised` are training
   chains, because others are not answered.
3. Does a looped model propagate more? A score differs if the interval over worlds of
   `ladder_looped` minus `ladder` at the end, paired by world and initialization, excludes 0.
4. Why? (a) The first hop is that of an overwritten state if the interval over worlds of the first
   hop of `rome` minus that of `state`, paired by run, is between -.1 and .1. It is then no evidence
   about a store. (b) The state codes the new tail if, right after the edited block, the new tail is
   decoded at r1 in a share of edits with a lower end of at least .8. (c) The second hop reads the
   edited key if the read strength where chains use the fact at the second hop has a lower end of at
   least .8. It does not read the key if the upper end is at most .2. The control is the read
   strength at other facts. (d) Both hops read one store, or two, if the instrument claims
   `stored_once`, or `stored_twice`. (e) Chains read the fact from a place of their own if, of edits
   through one chain, the lower ends of the share of taught chains with the new answer and of other
   chains that use the fact at the second hop are at least .8, and the upper end of the share of
   facts with the new answer is at most .2. The facts are I facts.
5. Where must a fact be edited? A place (block and position) reaches a hop if the lower end of the
   share is at least .8, and edits only this fact if, in addition, the lower end of "same entity" is
   at least .8. The facts are I facts. In a model of two blocks without loops, the first hop cannot
   read an edit of the last block.
6. Which method is best? A method is better, or worse, than `rome` at a score if the interval over
   worlds of the difference, paired by run, is above, or below, 0. `state` bounds the hops of a
   weight edit with the same vector, because it is written wherever a prompt uses the fact. Other
   vectors can reach more. With a chain of thought, it is no bound, because the model can read the
   fact again at r2, where the vector is not written. `memit` makes all 100 edits in one model. Its
   locality is that of one model per run, and has no interval within a run.
7. Can an edit be undone? An edit of an I fact that is edited back is undone if the lower ends of
   efficacy, first hop, second hop and locality are all at least .8, where the right answers are
   those before any edit. Only edits count whose first edit succeeds. The size of what is left is
   shown.
8. Are earlier edits kept? After 32 edits of I facts in one model, edits are kept if the lower end
   of efficacy is at least .8, and other prompts are kept if the lower end of locality is at least
   .8. There is one model, so locality is the share of other prompts that keep their answers, with
   an interval clustered by bridge. It does not depend on whether the edits succeed. Prompts that
   are related to one of the 32 edits do not count. The first hop is shown and has no rule. `memit`
   in question 6 makes 100 edits at once.

Smoke test:
    python experiments/editing.py --scale=smoke --arms=composition --worlds=1 --inits=1 \
        --jobs=0 --runs=runs/smoke --out=runs/smoke/editing
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import archive
import xarray as xr
from archive import about, along_run, analyses, curves, run_arms
from composition_phases import Part, part_of
from editing_figures import draw_all
from editing_instruments import Edits, Methods, MethodsWithThought
from editing_places import Places, Sequences, ThroughChains, with_locality
from editing_tables import write_tables
from reasoning_or_shortcut_arms import read_arms
from stages import chosen_steps, stages, steps_of_stages

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.editing.knowledge_editing import KnowledgeEditing
from implicit_reasoning.config import Flag
from implicit_reasoning.runs import Run

FLAGS = {**archive.FLAGS, "out": Flag(kind=Path, default=Path("results/editing"))}
VERSION = 1
"""Version of the saved data."""

CLAIMS = ("stored_once", "stored_twice")
EDITS = Part(
    (
        *("share", "efficacy", "change", "read", "decoded"),
        *("by_edit", "new_decoded", "chains", "role"),
    ),
    {},
)
AT_END: Mapping[str, tuple[type[KnowledgeEditing], Part]] = {
    "places": (Places, Part(("share", "efficacy", "read"), {})),
    "through_chains": (ThroughChains, Part(("taught", "share", "efficacy", "read"), {})),
    "sequences": (
        Sequences,
        Part(
            (
                *("back", "back_efficacy", "left"),
                *("in_sequence", "in_sequence_efficacy", "locality", "size"),
            ),
            {},
        ),
    ),
}


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then write the tables and draw the figures."""
    out = run_arms("editing", argv, FLAGS, measuring, kept, VERSION)
    arms = read_arms(out)
    write_tables(out, arms)
    draw_all(out, arms)


def methods(run: Run) -> type[Edits]:
    """Return the instrument with all editors that can be used for the task of a run."""
    return MethodsWithThought if "thought" in run.dataset.truth else Methods


def steps_of(run: Run) -> tuple[list[int], int]:
    """Return the stages between the untrained model and the last step, and the last step."""
    first, *steps = steps_of_stages(run, chosen_steps(run))
    assert first == run.steps[0]
    return steps[:-1], steps[-1]


def measuring(run: Run) -> list[list[str]]:
    """Return the commands that measure a run."""
    early, end = steps_of(run)
    at_end = [methods(run), *(instrument for instrument, _ in AT_END.values())]
    wanted: dict[tuple[int, ...], list[str]] = {(end,): [path_of(one) for one in at_end]}
    if early:
        wanted[tuple(early)] = [path_of(Edits)]
    return analyses(run, wanted)


def path_of(instrument: type[KnowledgeEditing]) -> str:
    """Return the import path of an instrument of this study."""
    return f"{Path(__file__).with_name(instrument.__module__)}.py:{instrument.__name__}"


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the curves, the stages, the claims and the parts of a run's results."""
    early, end = steps_of(run)
    measured = [(methods(run), [end])] + [(Edits, early)] * bool(early)
    results = {one: run.result(one.name).sel(step=steps) for one, steps in measured}
    parts = [part_of(result, EDITS) for result in results.values()]
    nodes = {
        "/": about(run, world, init),
        "training": curves(run),
        "stages": stages(run, chosen_steps(run)),
        "edits": small(xr.concat(parts, "step", join="outer", data_vars="all").sortby("step")),
        "claims": xr.concat([claims(one, found) for one, found in results.items()], "step").sortby(
            "step"
        ),
    }
    for node, (instrument, part) in AT_END.items():
        result = run.result(instrument.name).sel(step=end, drop=True)
        if instrument is Sequences:
            result = with_locality(result)
        nodes[node] = small(part_of(result, part))
    return along_run(nodes)


def claims(instrument: type[Edits], result: xr.Dataset) -> xr.Dataset:
    """Return which of `CLAIMS` an instrument makes at every step, 1 or 0."""
    made = [instrument().claims(result.sel(step=step)) for step in result["step"].values]
    found = [[float(Claim(kind, "e2") in one) for kind in CLAIMS] for one in made]
    coords = {"step": result["step"].values, "claim": list(CLAIMS)}
    return xr.Dataset({"claimed": (("step", "claim"), found)}, coords)


def small(part: xr.Dataset) -> xr.Dataset:
    """Return a part in single precision, with whole numbers that can be missing in other runs."""
    return part.map(lambda x: x.astype("f4") if x.dtype.kind in "fbiu" else x)


if __name__ == "__main__":
    main(sys.argv[1:])
