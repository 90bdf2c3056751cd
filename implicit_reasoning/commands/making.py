"""The commands `world`, `import` and `doctor`."""

from __future__ import annotations

import time
from typing import Any

from implicit_reasoning.config import apply_overrides, load_config

Arguments = dict[str, Any]


def world(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `world`: build a dataset, print a description, and write its files.

    The description includes the accuracy of shortcuts.
    """
    from implicit_reasoning.worlds import build
    from implicit_reasoning.worlds.exchange import write_grokked
    from implicit_reasoning.worlds.summary import describe

    config = apply_overrides(load_config(flags["config"]), overrides)
    began = time.perf_counter()
    dataset = build(config.task)
    print(describe(dataset))
    out = flags["out"]
    # `write_grokked` comes first, because it can raise errors, and does so before it writes files.
    write_grokked(dataset, out, wang_types=flags["wang_types"])
    dataset.save(out / "world.npz")
    print(f"wrote {out} in {time.perf_counter() - began:.1f} s")


def doctor(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `doctor`: print the devices and software of this machine, and advice."""
    from implicit_reasoning import doctor
    from implicit_reasoning.runtime import distributed

    if flags["config"] is not None:
        config = apply_overrides(load_config(flags["config"]), overrides)
        distributed.initialize(config.distributed)
    for name, finding in doctor.examine(flags["workdir"]).items():
        print(f"{name:>18}: {finding}")
    for remedy in doctor.remedies():
        print(f"\n{remedy}")


def import_(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `import`: create a run directory from a GrokkedTransformer run."""
    from implicit_reasoning.grokked_transformer import import_grokked

    run = import_grokked(flags["source"], flags["data"], flags["workdir"])
    print(f"imported {run}")
