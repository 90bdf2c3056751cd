"""Instruments measure the checkpoints of a run. They are scored on models of known mechanism.

Instruments, grouped by what they do:

reading/        read states without changing the model: lenses, probes, geometry
patching/       replace whole states and measure the effect on the answer
variables/      swap or erase a single variable in a state
behaviour.py    classify answers by kind
used.py         compare, in one table, the decoding, the swap and the erasure of each variable
truth/          score instruments on models whose mechanism is known

Shared code:

instrument.py   base classes of instruments
claims.py       claims about a mechanism, and their comparison with the truth
states.py       residual stream states and truth variables, used by most instruments
facts.py        one row for each fact, with folds for cross-validation
queries.py      selection of queries from the world (on the host)
chunks.py       evaluation of examples in chunks; examples that do not count are skipped
suffix.py       forward pass from a given layer to the logits of the answer
subject.py      objects that can be measured: a run, or weights in memory
runner.py       the runner, which measures all checkpoints in one compiled program
seeds.py        measurement of several runs in one program
sums.py         sums of outcomes by group and cluster, on the device
aggregate.py    means by group, with confidence intervals and cluster counts
storage.py      identity of results, and merging of results on disk
labels.py       checks of the labels and options of an instrument
api.py          `analyze(run, "lens")`, and the table of instruments
drawing.py      plots that several instruments use
figures.py      all figures of a run, for the report
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
