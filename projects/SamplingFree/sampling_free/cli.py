"""What the command line scripts share."""

import functools
import logging
import os
import re
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from detectron2.config import get_cfg
from omegaconf import DictConfig
from torch.multiprocessing import ProcessExitedException

from .config.convert import VARIANTS
from .config.load import find_config, load_config
from .utils.errors import BadInput, NonFiniteLoss, disk_fault, disk_line
from .utils.signals import Interrupted

__all__ = ["add_config_options", "config_of", "find_config", "one_line_errors", "parse"]


def add_config_options(parser: ArgumentParser, variants: bool = True) -> None:
    """Adds --config-file, --sampling-free, --variant, --allow-pickle and the overrides.

    Args:
        parser: it may have the first and the last already, as Detectron2's
            ``default_argument_parser``.
        variants: False for a script that compares variants.
    """
    known = {action.dest: action for action in parser._actions}
    file = known.get("config_file") or parser.add_argument("--config-file", default="")
    file.metavar, file.help = (
        "FILE",
        "a LazyConfig (.py), a YAML config of Detectron2, or a name in its model zoo, such as "
        "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    )
    if variants:
        parser.add_argument(
            "--sampling-free", action="store_true", help="short for --variant sampling_free"
        )
        lines = (f"{name}: {what}" for name, what in VARIANTS.items())
        parser.add_argument(
            "--variant", metavar="NAME", help=f"make it another detector first; {'; '.join(lines)}"
        )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load weights that could run code (train.allow_pickle=True): only if you trust where "
        "they come from",
    )
    opts = known.get("opts") or parser.add_argument("opts")
    opts.nargs, opts.metavar, opts.help = (
        "*",
        "KEY=VALUE",
        "overrides of the config, such as train.device=cpu; of a YAML config also KEY VALUE, such "
        "as SOLVER.IMS_PER_BATCH 8",
    )


def parse(
    parser: ArgumentParser, words: list[str] | None = None, own: tuple[str, ...] = ()
) -> Namespace:
    """Parses a command line whose overrides may stand anywhere.

    Args:
        parser: of :func:`add_config_options`.
        words: default: those of the process.
        own: options that take several key=value words, which are no overrides.

    Returns:
        ``opts`` is the list of all overrides.
    """
    words, overrides = _without_overrides(parser, sys.argv[1:] if words is None else words, own)
    args = parser.parse_args(words)
    args.opts = [*args.opts, *overrides]
    if args.allow_pickle:
        args.opts.append("train.allow_pickle=True")
    return args


def config_of(args: Namespace) -> DictConfig:
    """Loads the config that :func:`parse` found."""
    return load_config(args.config_file, args.opts, args.sampling_free, args.variant)


def _without_overrides(parser, words, own):
    """The words that argparse understands, and the overrides: it would give them to an option.

    A word right behind an option is the option's, unless that is a flag or has its value behind
    a =. What is there as a file is no override.
    """
    rest, overrides, option, words = [], [], None, list(words)
    yaml_keys = set(get_cfg())
    while words:
        word = words.pop(0)
        option = word if word.startswith("--") else option
        if option in own or rest and _takes_value(parser, rest[-1]) or os.path.exists(word):
            rest.append(word)
        elif re.match(r"[\w.+~]+=", word):
            overrides.append(word)
        elif word.split(".")[0] in yaml_keys:
            overrides += [word, *words[:1]]
            del words[:1]
        else:
            rest.append(word)
    return rest, overrides


def _takes_value(parser, word):
    """Whether the next word is an option's; also of one cut short, which argparse completes."""
    action = parser._option_string_actions.get(word)
    return action.nargs != 0 if action else word.startswith("--") and "=" not in word


def one_line_errors(main: Callable) -> Callable:
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
