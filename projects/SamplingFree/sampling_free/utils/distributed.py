"""One answer for all processes, be it an exception."""

import logging
from collections.abc import Callable

from detectron2.utils import comm

from .errors import BadInput

logger = logging.getLogger(__name__)


def agreed(function: Callable) -> object:
    """Calls a function on the main process and hands its result to all.

    Args:
        function: called by the main process alone; what it returns can be pickled.

    Returns:
        What it returned, on every process; or its exception is raised on all of them.
    """
    return raised(comm.all_gather(caught(function) if comm.is_main_process() else None)[0])


def caught(function: Callable) -> object:
    """Returns what ``function`` returns or raises: other processes must not wait for it in vain."""
    try:
        return function()
    except Exception as e:
        if not isinstance(e, BadInput):
            logger.exception("Failed, which ends all processes:")
        return e


def raised(answer: object) -> object:
    """Returns an answer of :func:`caught`, or raises it if it is an exception."""
    if isinstance(answer, Exception):
        raise answer
    return answer
