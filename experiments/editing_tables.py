"""Tables of `editing.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from components_rules import enough
from components_tables import table, write_answers
from editing_by_run import runs_tables
from editing_rules import (
    BINS,
    HOPS,
    ROLE_GROUPS,
    SPECIFIC,
    UNDONE,
    at_place,
    back,
    beside_rome,
    binned,
    by_chains,
    chains_matter,
    first_hop_by_state,
    follows,
    high,
    in_sequence,
    last_known,
    nulls_do_nothing,
    over_training,
    paired,
    reasons,
    share,
    sign,
    specific,
    stages_of,
    through_chains,
    undone,
    verdict,
)
from reasoning_or_shortcut_arms import Arm, over_worlds

from implicit_reasoning.analysis.editing.knowledge_editing import (
    EDITORS,
    MEMIT,
    NULLS,
    RANDOM,
    ROME,
)
from implicit_reasoning.analysis.editing.scores import SCORES

CLAIMS = ("composition", "ladder", "ladder_looped")
"""Arms that support claims; the others are shown as curves."""

LOOPED, BASE = "ladder_looped", "ladder"
KEPT = ("efficacy", "locality")
"""The scores of rule 8."""

PUBLISHED = (
    "Published, of other models and other edits: ROME on GPT-J, edited facts .88, multi-hop "
    "questions about them .07, with a chain of thought .20 (Zhong et al. 2023, MQuAKE; the first "
    "hop follows some .25 more often than later hops in a re-run by others). Fine-tuning of a "
    "small model that composes: edited facts 1, derived answers .03, with supervision of the state "
    "at r1 .69, and with states aligned to the embedding .85 (24 edits, re-run by others)."
)


def write_tables(out: Path, arms: Mapping[str, Arm]) -> None:
    """Write `answers.md`, with one section for each question, and `runs.md`, with every run."""
    arms = {name: arm for name, arm in in_order(arms).items() if "edits" in arm.parts}
    text = [
        "The answers by the decision rules of `experiments/editing.py`. A number is a mean over "
        "runs of a share of prompts, by edit. In square brackets is its 95% t interval over "
        "worlds, and in round brackets are the lowest and the highest run and the number of runs. "
        "Beside an answer are the number of runs in which the rule holds and the number of all "
        "runs, or the numbers of runs that say yes and no. `(n missing)`: in n runs, a number of "
        "the rule is missing, because fewer than 20 edits count; the rule fails in these runs. "
        "`-`: fewer than 20 edits count in every run, or there is no rule. `runs.md` has the "
        "numbers of every run, with intervals.",
        PUBLISHED,
    ]
    sections: Mapping[str, Callable[[Mapping[str, Arm]], list[str]]] = {
        "1. What follows an edit at the end?": following,
        "1 (a) - (e). The rules": rules_of_edits,
        "1 (f). By role of the fact": roles,
        "1 (g). By number of training chains": chains,
        "2. Does training change what an edit reaches?": training,
        "3. Does a looped model propagate more?": loops,
        "4 (a) - (d). Why?": explanations,
        "4 (e). Edits through one chain": chained,
        "5. Where must a fact be edited?": places,
        "6. Which method is best?": methods,
        "7. Can an edit be undone?": undoing,
        "8. Are earlier edits kept?": sequences,
    }
    write_answers(out, text, sections, arms)
    (out / "runs.md").write_text(runs_tables(arms), encoding="utf-8")


def in_order(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Return the arms; those that support claims come first."""
    return {name: arms[name] for name in sorted(arms, key=lambda n: (n not in CLAIMS, n))}


def answer(name: str, said: object) -> str:
    """Return an answer; arms that support no claim have none."""
    return str(said) if name in CLAIMS else "(curves)"


def judged(name: str, arm: Arm, said: str) -> str:
    """Return an answer to write after a number; empty for arms and runs that support none."""
    return f": {said}" if name in CLAIMS and enough(arm) else ""


def following(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of all scores, beside the nulls."""
    rows = [
        [
            name,
            editor,
            *(over_worlds(share(arm, s, editor=editor).mean, arm.worlds) for s in SCORES),
        ]
        for name, arm in arms.items()
        for editor in (ROME, *NULLS)
    ]
    return table(["arm", "editor", *SCORES], rows)


def rules_of_edits(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of the rules 1 (a) to (e)."""
    rows = []
    for name, arm in arms.items():
        difference = share(arm, "first hop").mean - share(arm, "second hop").mean
        cells = [
            high(share(arm, "efficacy")),
            *(follows(share(arm, hop)) for hop in HOPS),
            *(high(share(arm, f"stale {hop}")) for hop in HOPS),
            specific(arm),
            nulls_do_nothing(arm),
        ]
        shown = over_worlds(difference, arm.worlds)
        rows.append([name, *(answer(name, cell) for cell in cells), shown])
    return table(
        [
            *("arm", "edits succeed", "first hop follows", "second hop follows"),
            *("first hop keeps the old answer", "second hop keeps the old answer", "specific"),
            *("nulls do nothing", "first hop minus second hop"),
        ],
        rows,
    )


def roles(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table by role of the fact."""
    rows = []
    for name, arm in arms.items():
        for role in ROLE_GROUPS:
            cells = []
            for score in ("efficacy", *HOPS):
                values = share(arm, score, role=role).mean
                said = ""
                if role != "I" and score in HOPS and np.isfinite(values).any():
                    difference = values - share(arm, score).mean
                    said = judged(name, arm, sign(difference, arm))
                cells.append(over_worlds(values, arm.worlds) + said)
            rows.append([name, role, *cells])
    return table(["arm", "role", "efficacy", *HOPS], rows)


def chains(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table by number of training chains, and the rule 1 (g)."""
    rows = []
    for name, arm in arms.items():
        for score in HOPS:
            cells = [over_worlds(values, arm.worlds) for values in binned(arm, score).values()]
            shown = over_worlds(by_chains(arm, score), arm.worlds)
            shown += judged(name, arm, chains_matter(arm, score))
            rows.append([name, score, *cells, shown])
    columns = (f"{one} chains (all roles)" for one in BINS)
    return table(["arm", "hop", *columns, "Spearman (I facts)"], rows)


def training(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2. The stages of an arm are in the order of their steps."""
    rows = []
    for name, arm in arms.items():
        for score in ("efficacy", *HOPS, "locality"):
            cells = [
                f"{one}: {over_worlds(share(arm, score, stage=one).mean, arm.worlds)}"
                for one in stages_of(arm)
            ]
            difference = over_training(arm, score)
            shown = over_worlds(difference, arm.worlds)
            rows.append([name, score, *cells, shown, answer(name, sign(difference, arm))])
    columns = ("first stage", "second stage", "third stage")
    return table(["arm", "score", *columns, "end - memorised", "at the end"], rows)


def loops(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 3."""
    if LOOPED not in arms or BASE not in arms:
        return table([], [])
    rows = []
    for score in ("efficacy", *HOPS, "both", "locality"):
        difference, both = paired(arms[LOOPED], arms[BASE], score)
        cells = (
            over_worlds(share(arms[one], score).mean, arms[one].worlds) for one in (LOOPED, BASE)
        )
        shown = over_worlds(difference, both.worlds)
        rows.append([score, *cells, shown, sign(difference, both)])
    return table(["score", LOOPED, BASE, "difference", "looped"], rows)


def explanations(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 4."""
    rows = []
    for name, arm in arms.items():
        found = reasons(arm)
        saying, other = first_hop_by_state(arm)
        rows.append(
            [
                name,
                over_worlds(found.beyond_state, arm.worlds) + judged(name, arm, found.overwritten),
                over_worlds(found.new_decoded.mean, arm.worlds),
                answer(name, high(found.new_decoded)),
                over_worlds(saying, arm.worlds),
                over_worlds(other, arm.worlds),
                over_worlds(found.read.mean, arm.worlds),
                over_worlds(found.read_elsewhere.mean, arm.worlds),
                answer(name, follows(found.read)),
                *(answer(name, held) for held in found.stored.values()),
            ]
        )
    return table(
        [
            *("arm", "first hop of rome minus state: as a state", "new tail decoded"),
            *("state codes the new tail", "first hop if it does", "first hop if it does not"),
            *("read strength at the second hop", "at other facts", "second hop reads the key"),
            *("stored_once", "stored_twice"),
        ],
        rows,
    )


def chained(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of rule 4 (e)."""
    rows = []
    for name, arm in arms.items():
        found = through_chains(arm)
        numbers = (found.taught, found.others, found.fact, found.locality, *found.read.values())
        cells = [over_worlds(ends.mean, arm.worlds) for ends in numbers]
        rows.append([name, *cells, answer(name, found.own_place)])
    return table(
        [
            *("arm", "taught chain", "other chains, second hop", "the fact", "locality"),
            *("read strength at other chains", "at the fact", "at other facts"),
            "chains read a place of their own",
        ],
        rows,
    )


def places(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 5."""
    rows = []
    for name, arm in arms.items():
        for place in map(str, arm.parts["places"]["place"].values):
            first, second = (at_place(arm, place, hop) for hop in HOPS)
            entity = at_place(arm, place, "same entity")
            cells = [
                over_worlds(at_place(arm, place, score).mean, arm.worlds)
                for score in ("efficacy", *HOPS, "same entity", "locality")
            ]
            random = [at_place(arm, place, s, RANDOM).mean for s in ("efficacy", *HOPS)]
            rows.append(
                [
                    *(name, place, *cells, over_worlds(np.nanmax(random, 0), arm.worlds)),
                    *(answer(name, follows(ends)) for ends in (first, second)),
                    *(
                        answer(name, verdict(ends.is_high & entity.is_high, ends, entity))
                        for ends in (first, second)
                    ),
                ]
            )
    return table(
        [
            *("arm", "block, position", "efficacy", *HOPS, "same entity", "locality"),
            "random change: largest of efficacy and hops",
            *("reaches the first hop", "reaches the second hop"),
            *("first hop of this fact only", "second hop of this fact only"),
        ],
        rows,
    )


def methods(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 6."""
    scores = ("efficacy", *HOPS, "both", *SPECIFIC)
    rows = []
    for name, arm in arms.items():
        for editor in EDITORS:
            if editor not in arm.parts["edits"]["editor"]:
                continue
            cells = []
            for score in scores:
                said = beside_rome(arm, editor, score) if editor != ROME else ""
                shown = over_worlds(share(arm, score, editor=editor).mean, arm.worlds)
                if editor == MEMIT and score == "locality":
                    shown += " (one model per run)"
                cells.append(shown + (judged(name, arm, said) if said else ""))
            rows.append([name, editor, *cells])
    return table(["arm", "method", *scores], rows)


def undoing(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 7."""
    rows = []
    for name, arm in arms.items():
        left = arm.parts["sequences"]["left"].isel(group=0).values
        cells = [over_worlds(back(arm, score).mean, arm.worlds) for score in UNDONE]
        rows.append([name, *cells, over_worlds(left, arm.worlds), answer(name, undone(arm))])
    return table(["arm", *UNDONE, "norm that is left", "undone"], rows)


def sequences(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 8."""
    rows = []
    counts: list[int] = []
    for name, arm in arms.items():
        counts = [int(count) for count in arm.parts["sequences"]["count"].values]
        for score in ("efficacy", "first hop", "locality"):
            cells = [over_worlds(last_known(arm, score, count), arm.worlds) for count in counts]
            said = answer(name, high(in_sequence(arm, score))) if score in KEPT else "-"
            rows.append([name, score, *cells, said])
    return table(["arm", "score", *(f"after {count}" for count in counts), "kept"], rows)
