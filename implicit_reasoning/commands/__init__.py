"""The commands: their names and flags, and the functions that they call.

    table.py     `VERBS`: the name of each command, and its flags with types, defaults and help
    parser.py    help, shell completion and version, with argparse and shtab
    training.py  train, sweep, plan
    measuring.py analyze, score, dictionaries, report
    making.py    world, import, doctor

The modules of this package import heavy packages only inside functions, so `--help` is fast.
"""

from implicit_reasoning.commands.table import VERBS, Verb

__all__ = ["VERBS", "Verb"]
