"""Pickles that run code, and old ones that are sound."""

import os
import struct


def text(string):
    """A string as Python 2 writes it."""
    return b"U" + bytes([len(string)]) + string


def of_python_2(code=b"f4"):
    """A numpy array as Python 2 and numpy 1 have written it, protocol 2: {"w": array}."""
    state = b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    numbers = struct.pack("<2f", 1.5, -2.5)
    return (
        b"\x80\x02}" + text(b"w") + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        b"K\x00\x85" + text(b"b") + b"tR(K\x01K\x02\x85cnumpy\ndtype\n("
        + text(code) + b"K\x00K\x01tR" + state + b"b\x89" + text(numbers) + b"tbs."
    )  # fmt: skip


class Evil:
    """Makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
