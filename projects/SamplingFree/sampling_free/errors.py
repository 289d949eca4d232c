"""The two ways in which the package says that it cannot go on."""

import math


class BadInput(Exception):
    """A mistake in a config, a data set or a file: one line that names it and the way out.

    The command line tools print the line without a stack trace and exit with code 2.
    """

    def __init__(self, message):
        # A DataLoader worker re-raises with its whole traceback in front of the message.
        super().__init__(" ".join(str(message).rsplit("BadInput: ", 1)[-1].split()))


def require_number(key, value, low, high):
    """Raises BadInput unless ``value`` is a number in [low, high].

    Args:
        key (str): where a config has it.
        value (object): bool is no number here.
        low, high (float):
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        limits = f"from {low:g} up" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise BadInput(f"{key}={value!r}: give a number {limits}")


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite; the message says where, with which losses and images."""
