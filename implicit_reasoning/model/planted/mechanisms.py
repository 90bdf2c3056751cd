"""The planted models.

A composer answers a chain by two look-ups: it looks up e2, and then looks up (e2, r2). A memoriser
looks up (e1, r1, r2) at once. One model does both. Three models have a code of e2 that no answer
depends on. Each model answers all facts and chains of its `Knowledge`. A cluster composer also has
two look-ups, but single facts do not set the code of e2 between them. Some composers have
superposed codes, layer norm, gelu, or weights that both hops share.

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
from implicit_reasoning.model.planted.weights import Form

_LOOPS = 2  # of the looped model


def composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that computes e2 at r1, moves it to r2, and looks up (e2, r2) there.

    Both look-ups use the same facts. The model writes e2 into the dimensions that the unembedding
    reads, because it also answers the atomic prompt (e1, r1). Without a seed, block 0 looks up e2,
    and block 2 moves e2 and looks up the answer.
    """
    plan = MechanismBuilder("composer", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output)
    return plan.planted("factors", "grounded", "stored_twice")


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
    return plan.planted("factors", "grounded", "stored_twice")


def memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model that moves e1 and r1 to r2 and looks up (e1, r1, r2), one neuron per chain.

    The last block writes e2 at r1, which answers the atomic prompt. No later block can read this
    e2. Without a seed, block 0 moves e1 and r1, and block 1 looks up the answer.
    """
    plan = MechanismBuilder("memoriser", knowledge, seed)
    plan.look_up(LookUp.draw(plan.rng), certain=True)
    plan.bridge(LAST, LAST, plan.draft.output[knowledge.facts[2]])
    return plan.planted("memorised")


def parallel(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model with two routes: it composes two facts, and it looks up the whole chain.

    Either route alone gives the right answer. If the answers of the two routes differ, the model
    gives the composed one. *Removing* the bridge therefore changes no answer, but *replacing* the
    bridge does, so the bridge is used.
    """
    plan = MechanismBuilder("parallel", knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output, strength=2.0)
    plan.look_up(LookUp.draw(plan.rng), certain=False)
    return plan.planted("factors", "grounded", "stored_twice", maybe=("memorised",))


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
    return plan.planted("factors", "grounded", "stored_twice")


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
    return plan.planted("memorised")


def cluster_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a model whose code of the bridge comes from chains, apart from the single facts.

    The chains of `knowledge` are the training chains. At r1, the model looks up a code that the
    prefixes of one bridge share, and the second hop reads this code. A prefix has the code only if
    one of its training chains shares its last relation with another prefix of the bridge. At the
    same layer the model looks up e2 itself, which answers the atomic prompt. No later block reads
    it. The model therefore answers all facts and most held-out chains, but no held-out chain of a
    fact whose chains do not identify the bridge. Without a seed, block 0 looks up both codes, and
    block 2 moves the shared code and looks up the answer.
    """
    plan = MechanismBuilder("cluster_composer", knowledge, seed)
    plan.clusters(Hops.draw(plan.rng))
    return plan.planted("factors")


def shared_store(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a looped composer: both hops look up their facts in the same neurons.

    Two blocks are applied twice. The first loop finds the fact (e1, r1), and the second loop the
    fact (e2, r2). An edit of a stored fact therefore changes the first hop and the second hop
    alike. Without a seed, block 0 copies and looks up, and block 1 is empty.
    """
    plan = MechanismBuilder("shared_store", knowledge, seed, n_loops=_LOOPS)
    plan.one_store(Hops.draw_loops(plan.rng, _LOOPS))
    return plan.planted("factors", "grounded", "stored_once")


def superposed_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer whose codes are not orthogonal: the model has more codes than dimensions.

    Without a seed, the blocks are those of `composer`, as in the next three models.
    """
    return _in_form("superposed_composer", knowledge, seed, Form(superposed=True))


def layer_norm_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer with layer norm before every block and before the unembedding."""
    return _in_form("layer_norm_composer", knowledge, seed, Form(normalization="LN"))


def gelu_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer whose activation function is gelu, in the approximation of GPT-2."""
    return _in_form("gelu_composer", knowledge, seed, Form(act_fn="gelu_new"))


def gpt2_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Return a composer with superposed codes, layer norm and gelu, like a trained GPT-2."""
    return _in_form("gpt2_composer", knowledge, seed, Form(True, "gelu_new", "LN"))


def _in_form(name: str, knowledge: Knowledge, seed: int | None, form: Form) -> Planted:
    """Return the composer in another form of its weights."""
    plan = MechanismBuilder(name, knowledge, seed)
    plan.two_hops(Hops.draw(plan.rng), bridge=plan.draft.output)
    return plan.planted("factors", "grounded", "stored_twice", form=form)


MECHANISMS: dict[str, Callable[[Knowledge, int | None], Planted]] = {
    mechanism.__name__: mechanism
    for mechanism in (
        composer,
        hidden_composer,
        memoriser,
        parallel,
        idle_copy,
        prefix_memoriser,
        cluster_composer,
        shared_store,
        superposed_composer,
        layer_norm_composer,
        gelu_composer,
        gpt2_composer,
    )
}
"""The planted mechanisms, by name."""
