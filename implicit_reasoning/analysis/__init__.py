"""Instruments: each written for one model, run over all checkpoints, scored against truth.

instrument.py   the form of an instrument
claims.py       what one may say of a mechanism, and how that is judged
states.py       states and truth variables, from which most begin
runner.py       all checkpoints in one program; labelled results
aggregate.py    means by group, with intervals and their n
analyze.py      `analyze(run, "lens")`, and the table of instruments
known.py        models of known mechanism
score.py        instruments on those, judged
figures.py      what the report asks for
lens.py, ...    one instrument a file, with its figure
"""

from implicit_reasoning.analysis.api import INSTRUMENTS, analyze, analyze_all, find_instrument
from implicit_reasoning.analysis.claims import Claim, Mechanism, claimed, judge
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.runner import Runner, Subject, measure

__all__ = [
    "INSTRUMENTS",
    "Claim",
    "Examples",
    "Instrument",
    "Mechanism",
    "NotApplicable",
    "Runner",
    "Subject",
    "analyze",
    "analyze_all",
    "claimed",
    "find_instrument",
    "judge",
    "measure",
]
