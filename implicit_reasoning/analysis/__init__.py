"""Instruments, which measure the checkpoints of a run.

The subpackage `truth` scores the instruments on models whose mechanism is known.

The instruments are grouped as follows:

reading/        reads states without changing the model: lenses, probes, geometry
patching/       replaces whole states and measures the effect on the answer
variables/      swaps or erases a single variable in a state
components/     measures which heads, MLPs and neurons compute the answer
circuits/       measures through which edges the answer is computed
steering/       adds directions to a state, and measures which answers follow
editing/        gives facts new tails, and measures which of their consequences follow
behaviour.py    classifies answers by kind
used.py         compares the variables that can be decoded with those that the model uses
truth/          scores instruments on models whose mechanism is known

Modules that all instruments share:

instrument.py   defines the base classes of instruments
claims.py       defines claims about a mechanism, and compares them with the truth
states.py       computes residual stream states, and the values of variables such as e2
facts.py        chooses one row for each fact, and assigns rows to cross-validation folds
queries.py      chooses queries from the facts of the world, on the host
chunks.py       evaluates examples in chunks, and skips examples that are not needed
suffix.py       computes the logits of the answer from the states of a given layer
subject.py      defines the objects that can be measured: a run, or weights in memory
runner.py       measures all checkpoints in one compiled program
seeds.py        measures several runs in one program
sums.py         sums outcomes by group and cluster, on the device
aggregate.py    computes means by group, with confidence intervals and cluster counts
storage.py      decides which saved results can be merged, and merges them on disk
labels.py       checks that the labels and options of an instrument can be saved
api.py          defines `analyze(run, "lens")` and the table of instruments
drawing.py      draws the plots that several instruments use
figures.py      draws the figures of all results of a run, for the report
"""

from implicit_reasoning.analysis.api import (
    INSTRUMENTS,
    analyze,
    analyze_all,
    analyze_runs,
    find_instrument,
    with_pairs,
)
from implicit_reasoning.analysis.claims import Claim, Mechanism, claimed, judge
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.metrics import PairBatch
from implicit_reasoning.analysis.patching.pair_instrument import PairInstrument
from implicit_reasoning.analysis.patching.pairs import PromptPairs
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.subject import InMemory, Subject

__all__ = [
    "INSTRUMENTS",
    "Claim",
    "Examples",
    "InMemory",
    "Instrument",
    "Mechanism",
    "NotApplicable",
    "PairBatch",
    "PairInstrument",
    "PromptPairs",
    "Runner",
    "Subject",
    "analyze",
    "analyze_all",
    "analyze_runs",
    "claimed",
    "find_instrument",
    "judge",
    "measure",
    "with_pairs",
]
