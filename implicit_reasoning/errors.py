"""The one exception that means "your input is wrong": commands print it without a traceback."""


class InputError(ValueError):
    """Bad input from a person: says what is wrong, what was given, and what would be right."""
