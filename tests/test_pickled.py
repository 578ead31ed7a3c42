"""Pickles read without unpickling: the data come out, nothing is executed, and every damage is one line."""

from __future__ import annotations

import collections
import os
import pickle
import random
import struct
import zipfile

import pytest

from jrobust import pickled
from jrobust.errors import InputError
from jrobust.pickled import Call, Persistent, Symbol

DATA = {
    "numbers": [0, 1, -1, 255, 2**31, -(2**40), 10**40, 0.0, 1.5, -1e300, float("inf"), True, False, None],
    "texts": ["", "ä", "\x00", "a b\nc", b"", b"\xff\x00", bytearray(b"ab")],
    ("key", 1): (1, (2, (3,)), ()),
    "sets": [set(), {1, 2}, frozenset([3])],
    frozenset([4]): collections.OrderedDict([("b", 1), ("a", 2)]),
    "groups": collections.defaultdict(set, {"cat": {"1", "2"}}),
}


class Malicious:
    """Unpickling this makes the folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Point:
    """An object of no plain type."""

    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_come_out_in_every_protocol(protocol):
    read = pickled.loads(pickle.dumps(DATA, protocol))
    assert read == DATA
    assert list(read[frozenset([4])]) == ["b", "a"]
    kinds = {type(value) for value in (*read.values(), *read["sets"], *read["texts"])}
    assert kinds == {list, tuple, dict, set, frozenset, str, bytes}


def test_old_texts_and_classes():
    assert pickled.loads(b"S'text'\np0\n.") == "text" and pickled.loads(b"U\x02ab.") == "ab"  # of Python 2
    assert pickled.loads(b"I01\n.") is True and pickled.loads(b"(lp0\nI1\naI2\na.") == [1, 2]
    expected = Symbol("os", "system"), ("ls",)
    for content in (b"(S'ls'\nios\nsystem\n.", b"(cos\nsystem\nS'ls'\no.", b"cos\nsystem\n(S'ls'\ntR."):
        call = pickled.loads(content)
        assert (call.function, call.args) == expected


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path, protocol):
    content = pickle.dumps({"good": 1, "bad": Malicious(tmp_path / "made")}, protocol)
    (tmp_path / "data.pkl").write_bytes(content)
    read = pickled.read(tmp_path / "data.pkl")
    assert not (tmp_path / "made").exists()
    assert read["good"] == 1
    assert read["bad"].function == Symbol(os.mkdir.__module__, "mkdir")
    assert read["bad"].args == (str(tmp_path / "made"),)
    pickle.loads(content)
    assert (tmp_path / "made").is_dir()  # so it was malicious


def test_objects_are_records_of_how_they_would_be_made():
    for protocol in (2, 4):
        read = pickled.loads(pickle.dumps([Point(3), Point(3)], protocol))
        assert [type(value) for value in read] == [Call, Call] and read[0].state == {"x": 3}
        assert read[0].function in (Symbol(__name__, "Point"), Symbol("copyreg", "__newobj__"))
    read = pickled.loads(pickle.dumps(collections.deque([1, 2]), 4))
    assert read.function == Symbol("collections", "deque") and read.entries == [1, 2]
    read = pickled.loads(pickle.dumps(collections.Counter("aab"), 4))
    assert read.function == Symbol("collections", "Counter") and read.args == ({"a": 2, "b": 1},)
    assert pickled.loads(pickle.dumps(Point, 4)) == Symbol(__name__, "Point")
    assert pickled.loads(b"\x80\x02X\x01\x00\x00\x00aQ.") == Persistent("a")


def test_files_of_torch_by_hand(tmp_path):
    data = {"test": [["BAR/test/a_1.jpg"], [0]], "evil": Malicious(tmp_path / "made")}
    with zipfile.ZipFile(tmp_path / "new.torch", "w") as archive:
        archive.writestr("new/data.pkl", pickle.dumps(data, 2))
        archive.writestr("new/version", "3\n")
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, 2) for part in (*header, data, [])]
    (tmp_path / "old.torch").write_bytes(b"".join(parts) + b"numbers of tensors")
    for name in ("new", "old"):
        read = pickled.read_torch(tmp_path / f"{name}.torch")
        assert read["test"] == data["test"] and isinstance(read["evil"], Call)
    assert not (tmp_path / "made").exists()


def fails(match):
    return pytest.raises(InputError, match=match)


def test_what_is_no_file_of_torch(tmp_path):
    path = tmp_path / "a.torch"
    with fails("a.torch cannot be read .*No such file"):
        pickled.read_torch(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with fails("no file of torch.save: expected a zip with data.pkl"):
        pickled.read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/other.pkl", b"N.")
    with fails("a zip with 0 data.pkl"):
        pickled.read_torch(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps(list(range(1000))))
    whole = bytearray(path.read_bytes())
    whole[60:90] = bytes(30)
    path.write_bytes(whole)
    with fails("cannot be read as a zip|cannot be read as a pickle"):
        pickled.read_torch(path)


def shared() -> list:
    """A list of a hundred million items that is small in a file."""
    value: list = []
    for _ in range(8):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "exhausted"),
        (b"N", "exhausted"),
        (b"text", "mark that was not set"),
        (b"\xff\xd8\xff", "opcode"),
        (b".", "end with one value"),
        (b"NN.", "end with one value"),
        (b"(N.", "end with one value"),
        (b"0.", "mark that was not set"),
        (b"t.", "mark that was not set"),
        (b"R.", "empty stack"),
        (b"h\x07.", "entry 7 of its memo"),
        (b"NNa.", "appends to NoneType"),
        (b"N(Ne.", "appends to NoneType"),
        (b"NNNs.", "sets items of NoneType"),
        (b"\x80\x04N(\x90.", "adds to NoneType"),
        (b"NNb.", "gives a state to NoneType"),
        (b"NNR.", "arguments that are no tuple"),
        (b"NN\x93.", "a name that is no text"),
        (b"}]Ns.", "unhashable"),
        (b"(NNNd.", "argument 2 is shorter"),
        (b"\x80\x06N.", "protocol 6 is newer"),
        (b"\x82\x01.", "EXT1, which refers to what is outside"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"B\xff\xff\xff\x7fab.", "expected 2147483647 bytes"),
        (b"\x8e" + struct.pack("<Q", 2**60) + b"a.", "bytes"),
        (b"I" + b"9" * 5000 + b"\n.", "digits"),
        (b"cbuiltins\nset\n(Nt" + b"R.", "made from NoneType"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hext" + b"R.", "in 'hex'"),
        (b"cbuiltins\nbytearray\n(Nt" + b"R.", "made from NoneType"),
        (b"]q\x00h\x00a.", "contains itself"),
        (b"]" * 300 + b"a" * 299 + b".", "nested deeper than 200"),
        (b")" + b"\x85" * 300 + b".", "nested deeper than 200"),
        (b")" + b"2\x86" * 60 + b"}(" + b"NN" + b"u0.", "more than 5000000 items"),
        (b"})" + b"\x85" * 200_000 + b"Ns.", "nested deeper than 200"),  # hashing it would overflow the stack
        (pickle.dumps(shared()), "more than 5000000 items"),
    ],
)
def test_damaged_and_hostile_pickles_are_one_line(content, match):
    with fails(f"^here cannot be read as a pickle .*({match})") as error:
        pickled.loads(content, "here")
    assert "\n" not in str(error.value)


def test_whatever_is_changed_in_a_pickle_it_is_data_or_one_line():
    draw = random.Random(0)
    originals = [pickle.dumps(DATA, protocol) for protocol in range(6)]
    outcomes = collections.Counter()
    for _ in range(2000):
        content = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            pickled.loads(bytes(content[: draw.randrange(len(content)) if draw.random() < 0.3 else None]))
            outcomes["data"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes["data"], outcomes["refused"]) > 50
