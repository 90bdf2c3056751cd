"""The planted models.

A composer answers a chain by two look-ups: it looks up e2, and then looks up (e2, r2). A memoriser
looks up (e1, r1, r2) at once. One model does both. Two models have a code of e2 that no answer
depends on. Each model answers all facts and chains of its `Knowledge`.

A seed places the mechanism in random blocks and heads, and rotates the residual stream at random.
Without a seed, the mechanism is in the blocks that the docstring of the model states.
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

    Both look-ups use the same facts. The model writes e2 into the dimensions that the unembedding
    reads, because it also answers the atomic prompt (e1, r1). Without a seed, block 0 looks up e2,
    and block 2 moves e2 and looks up the answer.
    """
    plan = MechanismBuilder("composer", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output)
    return plan.planted(composes=True)


def hidden_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer that writes e2 into dimensions that the unembedding does not read.

    At r1, the last block translates this code of e2 into the answer of the atomic prompt. The logit
    lens therefore finds e2 after the last block only.
    """
    plan = MechanismBuilder("hidden_composer", knowledge, seed)
    bridge = plan.draft.space(knowledge.n_entities)
    plan.two_hops(Hops.draw(plan.rng), bridge=bridge)
    plan.draft.table(LAST, "r1", [bridge], [plan.draft.output])
    plan.truth.mark("code", "e2", "r1", DEPTH)
    return plan.planted(composes=True)


def memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that moves e1 and r1 to r2 and looks up (e1, r1, r2), one neuron per chain.

    The last block writes e2 at r1, which answers the atomic prompt. No later block can read this
    e2. Without a seed, block 0 moves e1 and r1, and block 1 looks up the answer.
    """
    plan = MechanismBuilder("memoriser", knowledge, seed)
    plan.look_up(LookUp.draw(plan.rng), certain=True)
    plan.bridge(LAST, LAST, plan.draft.output[knowledge.facts[2]])
    return plan.planted(composes=False)


def parallel(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model with two routes: it composes two facts, and it looks up the whole chain.

    Either route alone gives the right answer. If the answers of the two routes differ, the model
    gives the composed one. *Removing* the bridge therefore changes no answer, but *replacing* the
    bridge does, so the bridge is used.
    """
    plan = MechanismBuilder("parallel", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output, strength=2.0)
    plan.look_up(LookUp.draw(plan.rng), certain=False)
    return plan.planted(composes=None)


def idle_copy(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer that makes a second, idle copy of the bridge at r2, in an earlier block.

    No head or neuron reads the idle copy. At r2, e2 is therefore decodable from two codes, of which
    only one is used. Without a seed, block 1 makes the idle copy, and the two hops are in the same
    blocks as in the model of the function `composer`.
    """
    plan = MechanismBuilder("idle_copy", knowledge, seed)
    hops = Hops.draw(plan.rng, between=1)
    # The block that moves e2 to r2 also looks up the answer. Before that block, the idle copy is
    # therefore the only code of e2 at r2.
    hops = hops._replace(answer=hops.read)
    idle = hops.table + 1
    plan.two_hops(hops, bridge=plan.draft.output)
    copied = plan.draft.space(knowledge.n_entities)
    plan.draft.move(idle, "r1", "r2", plan.draft.output, copied, "e2")
    plan.truth.mark("code", "e2", "r2", idle + 1)
    return plan.planted(composes=True)


def prefix_memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that looks up an index of (e1, r1) at r1, and then (index, r2) at r2.

    At r1 the model also writes a code of e2, at the same layers and with the same norm as the code
    of the index. No answer depends on this code of e2. Patching the whole state at r1 from another
    chain also patches the index. If the model knows the chain of the patched index and this r2, the
    answer changes as if the bridge were used. Therefore give the model only some of the chains: if
    it does not know the chain of the patched index and this r2, the answer does not change as if
    the bridge were used. Without a seed, block 0 looks up e2 and the index, and block 2 moves the
    index and looks up the answer.
    """
    plan = MechanismBuilder("prefix_memoriser", knowledge, seed)
    plan.prefixes(Hops.draw(plan.rng))
    return plan.planted(composes=False)


MECHANISMS: dict[str, Callable[[Knowledge, int | None], Planted]] = {
    mechanism.__name__: mechanism
    for mechanism in (composer, hidden_composer, memoriser, parallel, idle_copy, prefix_memoriser)
}
"""The planted mechanisms, by name."""
