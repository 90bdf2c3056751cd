"""The planted models: two ways to answer, both at once, and two that carry a code in vain.

Each answers the facts and the chains that it is given, without exception. A seed moves the same
mechanism to random blocks, heads and directions; without one it stands where the docstring says.
"""

from __future__ import annotations

from collections.abc import Callable

from implicit_reasoning.model.planted.routes import (
    DEPTH,
    LAST,
    Hops,
    Knowledge,
    LookUp,
    MechanismBuilder,
    Planted,
)


def composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Computes e2 at r1, moves it to r2, and looks (e2, r2) up among the same facts there.

    The code of e2 is the one that is unembedded, as the atomic prompt (e1, r1) demands. Blocks 0
    (bridge) and 2 (answer).
    """
    plan = MechanismBuilder("composer", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output)
    return plan.planted(composes=True)


def hidden_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """The same, but the bridge's code is not the one that is unembedded.

    What answers the atomic prompt is derived from it in the last block: a lens sees e2 there only.
    """
    plan = MechanismBuilder("hidden_composer", knowledge, seed)
    bridge = plan.draft.space(knowledge.n_entities)
    plan.two_hops(Hops.draw(plan.rng), bridge=bridge)
    plan.draft.table(LAST, "r1", [bridge], [plan.draft.output])
    plan.truth.mark("code", "e2", "r1", DEPTH)
    return plan.planted(composes=True)


def memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Moves e1 and r1 to r2 and looks the three up, a neuron a chain.

    Its bridge at r1 is written by the last block, for the atomic prompt only, when no later block
    can read it. Blocks 0 (moves) and 1 (answer).
    """
    plan = MechanismBuilder("memoriser", knowledge, seed)
    plan.look_up(LookUp.draw(plan.rng), certain=True)
    plan.bridge(LAST, LAST, plan.draft.output[knowledge.facts[2]])
    return plan.planted(composes=False)


def parallel(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Composes and looks up; either would do alone, and where they differ the composition wins.

    Removing the bridge changes no answer; *replacing* it does: it is used all the same.
    """
    plan = MechanismBuilder("parallel", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output, strength=2.0)
    plan.look_up(LookUp.draw(plan.rng), certain=False)
    return plan.planted(composes=None)


def idle_copy(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """A composer that also copies the bridge to r2 a block too early, where nothing reads it.

    e2 is decodable at two places, and used at the one. Block 1 (copy), else as `composer`.
    """
    plan = MechanismBuilder("idle_copy", knowledge, seed)
    hops = Hops.draw(plan.rng, between=1)
    # Read within one block, so that the idle code is the only one of e2 at r2 before the answer.
    hops = hops._replace(answer=hops.read)
    idle = hops.table + 1
    plan.two_hops(hops, bridge=plan.draft.output)
    copied = plan.draft.space(knowledge.n_entities)
    plan.draft.move(idle, "r1", "r2", plan.draft.output, copied, "e2")
    plan.truth.mark("code", "e2", "r2", idle + 1)
    return plan.planted(composes=True)


def prefix_memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Numbers the prefix (e1, r1) at r1, and looks (that number, r2) up at r2.

    The code of e2 stands beside that of the prefix, at the same layers and of the same norm, and
    is not used. Moving the whole state to another chain moves the prefix too: the answer follows
    as if the bridge were used, if that chain is known. Give it some of the chains only, and the
    others tell. Blocks 0 (bridge and prefix) and 2 (answer).
    """
    plan = MechanismBuilder("prefix_memoriser", knowledge, seed)
    plan.prefixes(Hops.draw(plan.rng))
    return plan.planted(composes=False)


MECHANISMS: dict[str, Callable[[Knowledge, int | None], Planted]] = {
    mechanism.__name__: mechanism
    for mechanism in (composer, hidden_composer, memoriser, parallel, idle_copy, prefix_memoriser)
}
"""The planted mechanisms, by name."""
