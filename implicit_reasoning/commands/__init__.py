"""The commands: what each is called, which flags it has, which function it calls.

    table.py     `VERBS`: names, flags with types, defaults and help
    parser.py    help, shell completion and the version, by argparse and shtab
    training.py  train, sweep, plan
    measuring.py analyze, score, dictionaries, report
    making.py    world, import, doctor

Modules here import nothing heavy at the top, so that `--help` answers at once.
"""

from implicit_reasoning.commands.table import VERBS, Verb

__all__ = ["VERBS", "Verb"]
