"""Compile the next instrument while the one before it runs.

Compiling takes one core for seconds, and running leaves one idle often enough: with twelve
instruments in a row, that is a quarter of the time. Nothing depends on it: where a program was not
the one that is needed after all, another is compiled when it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from implicit_reasoning.analysis.instrument import Instrument
from implicit_reasoning.analysis.runner import Runner, examples_of
from implicit_reasoning.analysis.seeds import alike
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.model import Transformer

Runners = dict[Transformer, Runner]


class Ahead:
    """One thread that compiles, for instruments that are measured one after the other."""

    def __init__(self) -> None:
        """Start the thread."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        self._under_way: dict[int, Future[Runners]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the thread end, without what it has not begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def start(self, instrument: Instrument, subjects: Sequence[Subject], count: int) -> None:
        """Compile for so many checkpoints of the first set of subjects that go together."""
        future = self._thread.submit(_prepared, instrument, subjects, count)
        self._under_way[id(instrument)] = future

    def runners(self, instrument: Instrument) -> Runners:
        """What was compiled for an instrument; nothing where that failed, which measuring will."""
        found = self._under_way.pop(id(instrument), None)
        if found is None or found.exception() is not None:
            return {}
        return found.result()


def _prepared(instrument: Instrument, subjects: Sequence[Subject], count: int) -> Runners:
    together = alike(instrument, subjects)[0]
    subject = subjects[together[0]]
    runner = Runner(instrument, subject.model)
    runner.prepare(examples_of(instrument, subject), count * len(together))
    return {subject.model: runner}
