"""Pickles of arrays and plain containers pass; whatever could run code is refused, and not run."""

import collections
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.evil_pickles import Evil, of_python_2, text
from sampling_free.checkpoint.pickles import NotPlain, require_plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def weights():
    """What Detectron2's zoo has, and then some."""
    model = collections.OrderedDict(w=np.arange(6, dtype=np.float32).reshape(2, 3))
    model._metadata = collections.OrderedDict(w={"version": 1})  # of PyTorch's state dicts
    return {
        "model": model,
        "__author__": "Caffe2",
        "matching_heuristics": True,
        "numbers": [np.float64(3), np.int64(1), np.float16(1), 2**70, -1.5, 1j, None, np.bool_(1)],
        "arrays": [np.array([True]), np.zeros(3, ">f4"), np.asfortranarray(np.ones((2, 3)))],
        "axes": [np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2), np.ones((4, 6))[:, ::2]],
        "empty": [np.zeros((0, 4)), np.array(3), b"", "", {}, [], ()],
        "containers": ({1, 2}, frozenset("a"), b"\xff\x00", "\u00e9", (1, [2, {3: 4}])),
    }


def passes(data):
    require_plain(io.BytesIO(data))
    return True


def refusal(data):
    with pytest.raises(NotPlain) as e:
        require_plain(io.BytesIO(data))
    return str(e.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_containers_pass(protocol):
    assert passes(pickle.dumps(weights(), protocol))


def test_an_array_of_python_2_passes():
    data = of_python_2()
    assert pickle.loads(data, encoding="latin1")["w"].tolist() == [1.5, -2.5]
    assert passes(data)


def hidden(evil):
    """Containers with something evil at different places."""
    ordered = collections.OrderedDict(a=1)
    ordered._metadata = evil
    array = np.empty(1, object)
    array[0] = evil
    return {
        "bare": evil,
        "beside the weights": {**weights(), "more": evil},
        "in the weights": {"model": {"w": evil}, "__author__": "x"},
        "deep": [[({"a": [evil]},)]],
        "an attribute": {"model": ordered},
        "in an array": {"model": {"w": array}},
        "a set": {"a": frozenset([evil])},
    }


@pytest.mark.parametrize("where", hidden(None))
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_call_is_refused_and_not_made(tmp_path, protocol, where):
    folder = tmp_path / "made"
    data = pickle.dumps(hidden(Evil(folder))[where], protocol)
    assert refusal(data) and not folder.exists()
    pickle.loads(data)
    assert folder.exists()  # or nothing was shown


@pytest.mark.parametrize(
    "value, name",
    [
        (torch.zeros(2), "torch._utils._rebuild_tensor_v2"),
        (np.random.RandomState(0), "numpy.random"),
        (np.array(["text"]), "numpy.dtype of 'U4'"),
        (np.array([None]), "numpy.dtype of 'O8'"),
        (np.zeros(2, dtype=[("a", "f4")]), "numpy.dtype of 'V4'"),
        (Path("a"), "pathlib"),
        (range(3), "range"),
        (len, "builtins.len"),
        (collections.Counter("a"), "collections.Counter"),
    ],
)
def test_what_is_no_array_is_named(value, name):
    assert name in refusal(pickle.dumps(value, 2))


# Of the admitted names only those that a pickle of weights has use for can be called.
FORGED = {
    "another name of an admitted module": b"cnumpy\nload\n.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "an array class that is called": b"cnumpy\nndarray\n(K\x01\x85tR.",
    "a type made without its constructor": b"\x80\x02cnumpy\ndtype\n(" + text(b"O") + b"t\x81.",
    "an array of another class": b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n"
    b"K\x00\x85" + text(b"b") + b"tR.",
    "bytes by another codec": b"\x80\x02c_codecs\nencode\n(" + text(b"a") + text(b"rot13") + b"tR.",
    "bytes of any length": b"c__builtin__\nbytes\n(K\x09tR.",
    "a number that is an object": b"\x80\x02cnumpy.core.multiarray\nscalar\n("
    + text(b"f4") + text(b"abcd") + b"tR.",
    "a type with flags": of_python_2().replace(b"\xff\xff\xff\xffK\x00", b"\xff\xff\xff\xffK\x3f"),
    "a type with a size": of_python_2().replace(b"NNNJ\xff\xff\xff\xff", b"NNNJ\x00\x01\x00\x00"),
    "a type with fields": of_python_2().replace(b"NNNJ", b"N)}J"),
    "a short state of a type": of_python_2().replace(b"J\xff\xff\xff\xffK\x00t", b"K\x00t"),
    "records": of_python_2(b"V4"),
    "objects": of_python_2(b"O8"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_pickle_is_refused(what):
    assert FORGED[what] != of_python_2()
    assert refusal(FORGED[what])


@pytest.mark.parametrize("target", ["numpy\ndtype", "_codecs\nencode", "numpy\nndarray"])
@pytest.mark.parametrize("state", [b"}U\x01aK\x01s", b"N}U\x07__new__Ns\x86"])
def test_a_pickle_cannot_change_the_stand_ins(target, state):
    before = passes(of_python_2())
    with pytest.raises((NotPlain, TypeError)):
        require_plain(io.BytesIO(b"\x80\x02c" + target.encode() + b"\n" + state + b"b."))
    assert before and passes(of_python_2()) and refusal(of_python_2(b"O8"))


@pytest.mark.parametrize("data", [b"", b"text", pickle.dumps(weights())[:-9]])
def test_what_is_no_pickle_is_an_error(data):
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        require_plain(io.BytesIO(data))
