"""Instruments: each written for one model, run over all checkpoints, scored against truth.

reading/        what a state says: lenses, probes, geometry
patching/       whole states exchanged, and what the answer becomes
variables/      one variable exchanged or erased
behaviour.py    what wrong answers are
used.py         decodable or used? one table of a run
truth/          models of known mechanism, and instruments judged on them

instrument.py   the form of an instrument
claims.py       what one may say of a mechanism, and how that is judged
states.py       states and truth variables, from which most begin
facts.py        facts as the rows that are fitted and held out
queries.py      which queries meet, by the truth of the world (on the host)
chunks.py       examples some at a time, and only those that count
suffix.py       the rest of a forward pass, up to the answer
subject.py      what can be measured: a run, or weights in memory
runner.py       all checkpoints in one program; labelled results
seeds.py        several runs in one program
sums.py         sums by group and cluster, on the device
aggregate.py    means by group, with intervals and their n
storage.py      results on disk: identity, merging
api.py          `analyze(run, "lens")`, and the table of instruments
drawing.py      drawings that instruments share
figures.py      what the report asks for
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
