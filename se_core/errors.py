"""The errors that this package explains: each message names the argument or the file, the value, and the remedy.

Whatever else is raised is a bug, here or in the caller's code, and keeps its traceback.
"""


class SmoothEncoderError(Exception):
    """Base of all errors that this package explains."""


class InvalidValueError(SmoothEncoderError, ValueError):
    """An argument of the right type has a value that cannot be used."""


class InvalidTypeError(SmoothEncoderError, TypeError):
    """An argument is of a type, or a tensor of a dtype, that cannot be used."""
