"""What the command line scripts share."""

import functools
import logging
import sys
import warnings

from torch.multiprocessing import ProcessExitedException

from .config import find_config, load_config
from .errors import BadInput, NonFiniteLoss, disk_fault, disk_line
from .interruption import Interrupted

__all__ = [
    "add_allow_pickle",
    "allowed_pickle",
    "find_config",
    "load_config",
    "one_line_errors",
]


def add_allow_pickle(parser):
    """Adds --allow-pickle to an ArgumentParser; it is short for an override."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load weights that could run code (train.allow_pickle=True): only if you trust where "
        "they come from",
    )


def allowed_pickle(args):
    """list[str]: the override that --allow-pickle stands for."""
    return ["train.allow_pickle=True"] if args.allow_pickle else []


def one_line_errors(main):
    """Turns ``BadInput`` and ``NonFiniteLoss`` into one line on stderr and exit code 2.

    Also for the processes that ``launch`` starts, if their function is wrapped too.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)
        logging.raiseExceptions = False  # of a log file on a full disk, a stack trace for each line
        # Of Detectron2's anchor generator; says nothing to a user.
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        try:
            return main(*args, **kwargs)
        except (BadInput, NonFiniteLoss) as e:
            print(f"error: {e}", file=sys.stderr)
        except ProcessExitedException as e:
            if e.exit_code < 0:  # a process that was killed
                raise
            sys.exit(e.exit_code)
        except Interrupted as e:
            if str(e):
                print(f"error: {e}", file=sys.stderr)
            sys.exit(e.code)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as e:
            fault = disk_fault(e)
            if not fault:
                raise
            print(f"error: {disk_line(fault)}", file=sys.stderr)
        sys.exit(2)

    return wrapped


def _is_no_user_error(record):
    """Detectron2's trainer logs each exception with its stack trace; ours are one line."""
    error = record.exc_info and record.exc_info[1]
    return not (isinstance(error, (BadInput, NonFiniteLoss)) or error and disk_fault(error))
