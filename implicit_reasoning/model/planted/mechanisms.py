"""The planted models: composers, memorisers, both in parallel, and decoys with an unused code.

Each model answers all facts and chains that it is given. A seed moves the same mechanism to random
blocks, heads and directions. Without a seed it is in the blocks that the docstring states.
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
    """Return a model that computes e2 at r1, moves it to r2, and looks up (e2, r2) there.

    Both look-ups use the same facts. The code of e2 is the one that the unembedding reads, because
    the model also answers the atomic prompt (e1, r1). Blocks: 0 (bridge) and 2 (answer).
    """
    plan = MechanismBuilder("composer", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output)
    return plan.planted(composes=True)


def hidden_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer whose code of the bridge is not the one that the unembedding reads.

    The last block translates this code into the answer of the atomic prompt, so the logit lens
    finds e2 after that block only.
    """
    plan = MechanismBuilder("hidden_composer", knowledge, seed)
    bridge = plan.draft.space(knowledge.n_entities)
    plan.two_hops(Hops.draw(plan.rng), bridge=bridge)
    plan.draft.table(LAST, "r1", [bridge], [plan.draft.output])
    plan.truth.mark("code", "e2", "r1", DEPTH)
    return plan.planted(composes=True)


def memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that moves e1 and r1 to r2 and looks up (e1, r1, r2), one neuron per chain.

    The last block writes the bridge e2 at r1, for the atomic prompt only: no later block can read
    it. Blocks: 0 (moves) and 1 (answer).
    """
    plan = MechanismBuilder("memoriser", knowledge, seed)
    plan.look_up(LookUp.draw(plan.rng), certain=True)
    plan.bridge(LAST, LAST, plan.draft.output[knowledge.facts[2]])
    return plan.planted(composes=False)


def parallel(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that composes and looks up at once; if they differ, composition wins.

    Either route alone gives the answer. Removing the bridge therefore changes no answer, but
    *replacing* it does, so the bridge is used.
    """
    plan = MechanismBuilder("parallel", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output, strength=2.0)
    plan.look_up(LookUp.draw(plan.rng), certain=False)
    return plan.planted(composes=None)


def idle_copy(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer that also copies the bridge to r2 one block too early.

    Nothing reads this idle copy. e2 is therefore decodable from two codes, of which only one is
    used. Block 1 makes the copy; otherwise the model is as `composer`.
    """
    plan = MechanismBuilder("idle_copy", knowledge, seed)
    hops = Hops.draw(plan.rng, between=1)
    # The answer is looked up in the block that moves e2 to r2. Before that block, the idle code is
    # therefore the only code of e2 at r2.
    hops = hops._replace(answer=hops.read)
    idle = hops.table + 1
    plan.two_hops(hops, bridge=plan.draft.output)
    copied = plan.draft.space(knowledge.n_entities)
    plan.draft.move(idle, "r1", "r2", plan.draft.output, copied, "e2")
    plan.truth.mark("code", "e2", "r2", idle + 1)
    return plan.planted(composes=True)


def prefix_memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that numbers the prefix (e1, r1) at r1, and looks up (number, r2) at r2.

    A code of e2 exists next to that of the prefix, at the same layers and with the same norm, but
    is not used. Patching the whole state from another chain also patches the prefix. If the model
    knows the resulting chain (the other prefix with this r2), the answer changes as if the bridge
    were used. Give the model only some of the chains: if it does not know the resulting chain, the
    answer does not follow the bridge. Blocks: 0 (bridge and prefix) and 2 (answer).
    """
    plan = MechanismBuilder("prefix_memoriser", knowledge, seed)
    plan.prefixes(Hops.draw(plan.rng))
    return plan.planted(composes=False)


MECHANISMS: dict[str, Callable[[Knowledge, int | None], Planted]] = {
    mechanism.__name__: mechanism
    for mechanism in (composer, hidden_composer, memoriser, parallel, idle_copy, prefix_memoriser)
}
"""The planted mechanisms, by name."""
