"""Instruments: measurements that run over all checkpoints and are scored on known mechanisms.

Instruments by what they do:

reading/        read states without changing the model: lenses, probes, geometry
patching/       replace whole states and measure the effect on the answer
variables/      swap or erase a single variable in a state
behaviour.py    classify answers by kind
used.py         compare decoding, swap and erasure of each variable in one table
truth/          models with known mechanisms, and scores of instruments on them

Shared code:

instrument.py   base classes of instruments
claims.py       claims about a mechanism, and their comparison with the truth
states.py       residual stream states and truth variables, used by most instruments
facts.py        one row for each fact, with folds for cross-validation
queries.py      selection of queries from the world (on the host)
chunks.py       evaluation of examples in chunks, without the examples that do not count
suffix.py       forward pass from a given layer to the answer
subject.py      objects that can be measured: a run, or weights in memory
runner.py       one compiled program for all checkpoints; labelled results
seeds.py        several runs in one program
sums.py         sums by group and cluster, on the device
aggregate.py    means by group, with confidence intervals and cluster counts
storage.py      results on disk: identity, merging
labels.py       checks of the labels and options of an instrument
api.py          `analyze(run, "lens")`, and the table of instruments
drawing.py      plots shared by instruments
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
