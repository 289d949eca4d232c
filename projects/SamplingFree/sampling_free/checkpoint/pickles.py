"""Looks through a pickle before it is loaded: arrays of numbers and plain containers only.

A pickle is a program. It names functions of any module and calls them, so that loading a file of
weights does whatever its maker wished. Here the file is read by an unpickler that knows the few
names by which numpy's arrays and numbers and Python's containers are written, and puts a stand-in
in the place of each, so that nothing which the file names is called. The first other name is an
error. What has passed can be given to ``pickle.load``.
"""

import pickle
from typing import BinaryIO


class NotPlain(pickle.UnpicklingError):
    """A pickle holds something else than arrays of numbers and plain containers."""

    def __init__(self, name, why):
        super().__init__(f"GLOBAL {name} {why}")  # as PyTorch's unpickler names it


def require_plain(file: BinaryIO) -> None:
    """Makes sure that a pickle holds plain data and runs no code.

    Args:
        file: at the start of the pickle; of any protocol, of Python 2 too.

    Raises:
        NotPlain: it names something else; the message says what.
        Exception: it is no pickle, or a torn one: whatever ``pickle.load`` raises then.
    """
    _PlainUnpickler(file, encoding="latin1").load()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        # numpy 2 has moved them; Python 2 has another name for builtins.
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (module, name) not in STAND_INS:
            raise NotPlain(f"{module}.{name}", "is no array, number or plain container")
        return STAND_INS[module, name]


class _StandIn:
    """In the place of what a pickle names; a pickle cannot change it either."""

    def __setstate__(self, state):
        raise NotPlain(type(self).__name__, "has no state")


class _ArrayClass(_StandIn):
    def __new__(cls, *args):
        raise NotPlain("numpy.ndarray", "is called")


class _Type(_StandIn):
    """For ``numpy.dtype``, of numbers and truth values.

    Objects, and records that may hold some, are pointers, which a file could forge.
    """

    def __new__(cls, code, align=False, copy=False):
        if not (isinstance(code, str) and code[:1] in set("biufc") and code[1:].isdigit()):
            raise NotPlain("numpy.dtype", f"of {code!r} is no type of numbers")
        return super().__new__(cls)

    def __setstate__(self, state):
        # Version, byte order; nested array, names, fields; size, alignment, flags.
        if len(state) != 8 or state[1] not in set("<>=|") or state[2:] != PLAIN_TYPE:
            raise NotPlain("numpy.dtype", f"with the state {state} is no type of numbers")


PLAIN_TYPE = (None, None, None, -1, -1, 0)


class _Array(_StandIn):
    """For an array as it is made first: empty. Its numbers come as its state."""

    def __new__(cls, array_class, shape, code):
        if array_class is not _ArrayClass:
            raise NotPlain("numpy.core.multiarray._reconstruct", "of what is no array")
        return super().__new__(cls)

    def __setstate__(self, state):
        _, _, dtype, _, numbers = state  # version, shape, Fortran's order
        _require_numbers(dtype, numbers)


class _Scalar(_StandIn):
    def __new__(cls, dtype, number):
        _require_numbers(dtype, number)
        return super().__new__(cls)


class _Buffer(_StandIn):
    """For an array of protocol 5; the order of its axes is numpy 2.4's."""

    def __new__(cls, buffer, dtype, shape, order, axis_order=None):
        _require_numbers(dtype, buffer)
        return super().__new__(cls)


class _OrderedDict(dict):
    def __setstate__(self, state):  # PyTorch's state dicts have an attribute
        if not isinstance(state, dict):
            raise NotPlain("collections.OrderedDict", "with a state that is no dict")


class _NoBytes(_StandIn):
    """For b"" in protocols up to 2."""

    def __new__(cls, *args):
        if args:
            raise NotPlain("builtins.bytes", "is called with arguments")
        return b""


class _Encoded(_StandIn):
    """For other bytes there, which are written as text."""

    def __new__(cls, text, encoding):
        if encoding != "latin1":
            raise NotPlain("_codecs.encode", f"to {encoding!r}")
        return text


def _require_numbers(dtype, numbers):
    if not isinstance(dtype, _Type) or not isinstance(numbers, (bytes, bytearray, str)):
        raise NotPlain("numpy.ndarray", "of what is no number")


STAND_INS = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("collections", "OrderedDict"): _OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _NoBytes,
    ("_codecs", "encode"): _Encoded,
}
