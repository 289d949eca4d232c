"""The two ways in which the package says that it cannot go on."""


class BadInput(Exception):
    """A mistake in a config, a data set or a file: one line that names it and the way out.

    The command line tools print the line without a stack trace and exit with code 2.
    """

    def __init__(self, message):
        # A DataLoader worker re-raises with its whole traceback in front of the message.
        super().__init__(" ".join(str(message).rsplit("BadInput: ", 1)[-1].split()))


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite; the message says where, with which losses and images."""
