"""Files of torch that want to run code, take all memory or never end: nothing runs, and the answer is one line."""

import contextlib
import io
import os
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_files import CLASSES, Own, attempt, check, features, output, randomised, read
from vgg import ModelError
from vgg.formats import pickles
from vgg.formats.pickles import Record

CANARY = "hostile-was-here"


class Reduced:
    def __reduce__(self):
        return os.mkdir, (CANARY,)


class Built:
    """A state with a function's name, for BUILD."""

    def __reduce__(self):
        return os.path.join, ("a",), {"__setstate__": os.mkdir, "x": Reduced()}


class Evaluated:
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({CANARY!r})",)


class Iterated:
    def __reduce__(self):
        return list, (), None, iter([Reduced(), Evaluated()]), iter([("a", Reduced())])


HOSTILE = {
    "reduce": pickle.dumps(Reduced(), 2),
    "reduce, protocol 4": pickle.dumps(Reduced(), 4),
    "reduce, protocol 0": pickle.dumps(Reduced(), 0),
    "build": pickle.dumps(Built(), 2),
    "evaluated": pickle.dumps(Evaluated(), 2),
    "iterated": pickle.dumps(Iterated(), 2),
    "inst": f"(S'{CANARY}'\nios\nmkdir\n.".encode(),
    "obj": f"(cos\nmkdir\nS'{CANARY}'\no.".encode(),
    "newobj": f"cos\nmkdir\n(S'{CANARY}'\nt\x81.".encode("latin-1"),
    "newobj_ex": f"cos\nmkdir\n(S'{CANARY}'\nt}}\x92.".encode("latin-1"),
    "extension": b"\x82\x01.",
    "known function with a hostile argument": b"ccollections\nOrderedDict\n(" + pickle.dumps(Reduced(), 0)[:-1] + b"tR.",
    "persistent": b"(S'storage'\n" + pickle.dumps(Reduced(), 0)[:-1] + b"S'0'\nS'cpu'\nK\x01tQ.",
    "attribute of a known function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__code__'\n"
    + pickle.dumps(Reduced(), 0)[:-1]
    + b"sb.",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """An empty working folder, in which nothing may appear but what the test writes."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(CANARY)


@pytest.mark.parametrize("kind", ["reduce", "reduce, protocol 4", "reduce, protocol 0", "evaluated", "iterated", "inst", "obj"])
def test_the_pickles_are_hostile_to_pythons_own_reader(kind):
    with contextlib.suppress(Exception):
        pickle.loads(HOSTILE[kind])
    os.rmdir(CANARY)


def replaced(path: str, entry: str, change) -> None:
    """Replace a part of an archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    for name in entries:
        if fnmatch(name, f"*/{entry}"):
            entries[name] = change(entries[name])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def traced(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.trace(module, torch.zeros(1, 3, 64, 64), check_trace=False)


def nested(hostile: bytes, content: bytes) -> bytes:
    """A pickle of {"evil": hostile, **content} from two pickles, whose memos don't overlap."""
    body = content[2:-1] if content[:1] == b"\x80" else content[:-1]
    evil = hostile[2:-1] if hostile[:1] == b"\x80" else hostile[:-1]
    evil = evil.removeprefix(b"\x95" + evil[1:9]) if evil[:1] == b"\x95" else evil
    return b"\x80\x04}" + b"S'evil'\n" + evil + b"s" + b"S'model'\n" + body + b"s."


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_runs_beside_the_weights(kind):
    module = randomised(Own(nn.Linear(128, CLASSES)))
    torch.save(module.state_dict(), "n.pth")
    replaced("n.pth", "data.pkl", lambda content: nested(HOSTILE[kind], content))
    check("n.pth", output(module))


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("entry", ["data.pkl", "constants.pkl", "traced_inputs.pkl"])
def test_nothing_runs_in_torchscript(kind, entry):
    module = nn.Sequential(features(), nn.Flatten(), nn.Linear(128, CLASSES))
    traced(module).save("n.pt")
    replaced("n.pt", entry, lambda _: HOSTILE[kind])
    assert attempt("n.pt") or entry != "data.pkl"


class HostileModule(nn.Module):
    """A module with something hostile among its attributes, as one of its modules, or in place of an activation."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.features = features()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(128, CLASSES)
        if place == "attribute":
            self.evil = Reduced()
        elif place == "module":
            self._modules["evil"] = Evaluated()
        elif place == "hook":
            self._forward_hooks[0] = Reduced()
        elif place == "weight":
            self.fc._parameters["weight"] = Reduced()
        else:
            self.features[0].stride = Iterated()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["attribute", "module", "hook", "weight", "number"])
def test_nothing_runs_in_a_whole_module(place, zipped):
    torch.save(HostileModule(place), "n.pt", _use_new_zipfile_serialization=zipped)
    if place == "attribute":
        read("n.pt")
    else:
        with pytest.raises(ModelError, match=r"^n\.pt: (not a VGG network|damaged)"):
            read("n.pt")


CODE = {
    "import": "import os\nos.mkdir('hostile-was-here')\n",
    "call": "os.mkdir('hostile-was-here')",
    "dunder": "().__class__.__base__.__subclasses__()",
    "getattr": "getattr(getattr(self, '__class__'), '__init__')",
    "format": "'{0.__class__}'.format(self)",
    "comprehension": "[x for x in range(10**9)]",
    "power": "10 ** 10 ** 10",
    "shift": "1 << 10 ** 12",
    "repeated": "[0] * 10 ** 12",
    "lambda": "(lambda: 1)()",
    "operator": "torch.mul('a', 10 ** 12)",
    "constant": "CONSTANTS.__class__",
    "deep": "(" * 500 + "x" + ")" * 500,
    "chain": "x" + ".y" * 50_000,
    "minus": "-" * 50_000 + "1",
    "endless": "self.forward(x)",
    "size": "torch.size(x, )[10 ** 20]",
    "number": "9" * 5000,
}


@pytest.mark.parametrize("kind", CODE)
def test_the_code_of_torchscript_is_not_run(kind):
    module = nn.Sequential(features(), nn.Flatten(), nn.Linear(128, CLASSES))
    traced(module).save("n.pt")
    source = CODE[kind]

    def change(code: bytes) -> bytes:
        text = code.decode()
        if kind == "import":
            return (source + text).encode()
        first, _, rest = text.partition(") -> Tensor:\n")
        argument = first.rpartition("\n")[2].split(":")[0].strip()
        return f"{first}) -> Tensor:\n    x = {argument}\n    evil = {source}\n{rest}".encode()

    replaced("n.pt", "container*.py", change)
    started = time.monotonic()
    assert attempt("n.pt") or kind in ("import", "number")
    assert time.monotonic() - started < 20


def load(content: bytes):
    return pickles.load("n.pth", io.BytesIO(content), {}, lambda pid: pid)


def test_a_known_pickle_is_what_python_makes_of_it():
    value = {"a": [1, 2.5, None, True, b"x", "ä", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}], 3: -(2**70), "e": ()}
    for protocol in range(6):
        if protocol < 3:
            value["a"][4] = "x"
        assert load(pickle.dumps(value, protocol)) == value


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


BOMBS = {
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",  # which Python's own unpickler takes gigabytes for
    "tuples": b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "tuple as a key": b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "lists": b"\x80\x02" + b"]" * 100_000 + b".",
    "number": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\x01" * 1000 + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "digits": b"I" + b"9" * 200_000 + b"\n.",
    "deep": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
    "deep tuple": b"\x80\x02)" + b"\x85" * 60_000 + b".",
    "one text, many calls": b"\x80\x02" + text("a" * 200_000) + b"q\x00c_codecs\nencode\nq\x01"
    + (b"h\x01h\x00" + text("latin1") + b"\x86R") * 5000 + b".",
    "one tuple, many calls": b"\x80\x02(" + b"K\x01" * 50_000 + b"tq\x00" + b"ctorch\nSize\nh\x00\x85R" * 5000 + b".",
    "one dictionary, many keys": b"\x80\x02}q\x00(" + b"".join(text(f"w{n}") + b"K\x01" for n in range(5000)) + b"u0}("
    + b"".join(text(f"k{n}") + b"h\x00" for n in range(5000)) + b"u.",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_takes_little_memory_and_time(kind):
    state = Own(nn.Linear(128, CLASSES)).state_dict()
    torch.save(state, "n.pth")
    replaced("n.pth", "data.pkl", lambda content: nested(BOMBS[kind], content))
    size = os.path.getsize("n.pth")
    tracemalloc.start()
    started = time.monotonic()
    attempt("n.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * size + 2_000_000, peak  # a list of one byte takes 64
    assert time.monotonic() - started < 30


SMALL = {
    "mask": {"weight_orig": torch.ones(2**14, 1), "weight_mask": torch.ones(1, 2**14)},
    "length": {"weight_g": torch.ones(1, 2**14), "weight_v": torch.ones(2**14, 1)},
    "spectral": {"weight_orig": torch.ones(2**7, 2**7), "weight_u": torch.ones(2**14, 2**7), "weight_v": torch.ones(2**7, 64)},
}


@pytest.mark.parametrize("kind", SMALL)
def test_the_parts_of_a_weight_must_have_its_shape(kind):
    state = Own(nn.Linear(128, CLASSES)).state_dict() | {f"x.{name}": value for name, value in SMALL[kind].items()}
    torch.save(state, "n.pth")
    tracemalloc.start()
    assert "not a VGG network" in attempt("n.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000, peak


def test_a_key_of_many_parts_is_refused_at_once():
    state = Own(nn.Linear(128, CLASSES)).state_dict() | {".".join("a" * 20_000): torch.ones(1)}
    torch.save(state, "n.pth")
    started = time.process_time()
    assert attempt("n.pth").endswith("… has more than 64 parts")
    assert time.process_time() - started < 5


def test_a_pickle_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(pickles, "MOST", 1000)
    torch.save({"model": Own(nn.Linear(128, CLASSES)).state_dict(), "history": [0.5] * 1000}, "n.pth")
    with pytest.raises(ModelError, match=r"^n\.pth: its pickle has more than 1000 entries; save the weights alone"):
        read("n.pth")


def test_modules_that_contain_each_other_end(monkeypatch):
    outer = inner = Record("torch.nn.modules.container.Sequential", ())
    for _ in range(100):
        inner, outer = outer, Record("torch.nn.modules.container.Sequential", ())
        outer.state = {"_modules": {"0": inner, "1": inner}}
    inner.state = {"_modules": {"0": outer}}
    from vgg.formats import torch_modules

    with pytest.raises(ModelError, match=r"not a VGG network: (more than \d+ modules|unsupported module)"):
        torch_modules.read("n.pt", outer)


def test_a_compressed_archive_is_not_damaged():
    torch.save(Own(nn.Linear(128, CLASSES)).state_dict(), "n.pth")
    with zipfile.ZipFile("n.pth") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile("n.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match=r"^n\.pth: .*data\S* is compressed, which torch's own files are not"):
        read("n.pth")


def test_an_expanded_tensor_may_not_be_huge():
    state = Own(nn.Linear(128, CLASSES)).state_dict()
    state["features.0.bias"] = torch.zeros(1).expand(4)
    torch.save(state, "n.pth")
    assert not np.any(read("n.pth")[0].parameters["conv1_1.bias"])
    state["features.0.bias"] = torch.zeros(1).expand(2**40)
    torch.save(state, "n.pth")
    with pytest.raises(ModelError, match="a tensor without its storage"):
        read("n.pth")


def whole(form: str) -> bytes:
    """The bytes of a small file of this form."""
    module = nn.Sequential(features(), nn.Flatten(), nn.Linear(128, CLASSES)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form in ("trace", "script"):
            made = (
                torch.jit.script(module)
                if form == "script"
                else torch.jit.trace(module, torch.zeros(1, 3, 64, 64), check_trace=False)
            )
            made.save("whole")
        else:
            content = {"model": module.state_dict(), "epoch": 3} if form == "checkpoint" else module
            torch.save(content, "whole", _use_new_zipfile_serialization=form != "legacy")
    with open("whole", "rb") as file:
        return file.read()


@pytest.mark.parametrize("form", ["module", "legacy", "checkpoint", "trace", "script"])
def test_a_broken_file_is_one_clear_line(form):
    content = whole(form)
    # What is read besides numbers, where damage matters most.
    text = [place for place in range(len(content)) if content[place : place + 4] in (b"torc", b"weig", b"\x80\x02c", b"forw")]
    lies = [b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\0\0\0\x80", b"R", b"b", b"\x81", b"(", b"t", b"."]

    @settings(max_examples=80)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        changed = bytearray(content)
        near = st.sampled_from(text).flatmap(lambda place: st.integers(max(0, place - 60), min(place + 60, len(content) - 1)))
        places = st.one_of(near, near, st.integers(0, 400), st.integers(len(content) - 600, len(content) - 1))
        for place in data.draw(st.lists(places, min_size=1, max_size=6)):
            lie = data.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from(lies)))
            changed[place : place + len(lie)] = lie
        with open("n.pt", "wb") as file:
            file.write(changed[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else changed)
        tracemalloc.start()
        attempt("n.pt")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(content) + 4_000_000, peak

    run()


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_runs_in_pythons_own_pickles(kind):
    module = randomised(Own(nn.Linear(128, CLASSES)))
    with open("n.pkl", "wb") as file:
        file.write(nested(HOSTILE[kind], pickle.dumps(module.state_dict(), 2)))
    check("n.pkl", output(module))
    with open("n.pkl", "wb") as file:
        file.write(b"\x80\x02" + HOSTILE[kind].removeprefix(b"\x80\x02"))
    assert attempt("n.pkl")


def test_storages_within_a_pickle_have_its_limits():
    """Each storage is a file in itself, which a pickle could have read any number of times, or again within itself."""
    inner = io.BytesIO()
    torch.save([0] * 20_000, inner, _use_new_zipfile_serialization=False)
    call = b"ctorch.storage\n_load_from_bytes\n"
    blob = b"B" + struct.pack("<I", len(inner.getvalue())) + inner.getvalue()
    many = b"\x80\x02" + call + b"q\x000" + blob + b"\x85q\x010]" + b"h\x00h\x01Ra" * 10_000 + b"."
    deep = inner.getvalue()
    for _ in range(50):
        deep = b"\x80\x02" + call + b"B" + struct.pack("<I", len(deep)) + deep + b"\x85R."
    for content in (many, deep):
        with open("n.pkl", "wb") as file:
            file.write(content)
        started = time.monotonic()
        assert attempt("n.pkl")
        assert time.monotonic() - started < 60


MANY = {
    "starts": lambda place: (f"n{place}.0.weight", torch.zeros(4, 3, 3, 3)),
    "starts in each other": lambda place: ("a." * (place % 900) + f"{place}.weight", torch.zeros(4, 3, 3, 3)),
    "layers": lambda place: (f"features.{100 + place}.bias", torch.zeros(4)),
    "linear": lambda place: (f"fc{place}.weight", torch.zeros(4, 4)),
    "long keys": lambda place: ("loss_" * 2000 + f"-{place}.weight", torch.zeros(4)),
}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("wrap", [True, False], ids=["dictionaries", "keys"])
def test_many_layers_and_networks_are_refused_in_time(kind, wrap):
    state = Own(nn.Linear(128, CLASSES)).state_dict()
    shared: dict = {}
    for place in range(500 if kind == "long keys" else 4000):
        key, tensor = MANY[kind](place)
        shared[key] = shared.get(next(iter(shared), ""), tensor)
    content = (
        {str(place): {"weight": value, **state} for place, value in enumerate(shared.values())} if wrap else {**state, **shared}
    )
    torch.save(content, "n.pth")
    started = time.monotonic()
    assert attempt("n.pth")
    assert time.monotonic() - started < 30


def checkpoint(kind: str) -> bytes:
    """The bytes of a checkpoint, with objects beside the weights that would leave a mark."""
    module = randomised(Own(nn.Linear(128, CLASSES), bn=kind != "arrays"))
    state = module.state_dict()
    beside = {"args": Evaluated(), "hooks": [Reduced()], "path": Built()}
    contents = {
        "zip": {**beside, "state_dict": state},
        "legacy": {"model": state, **beside},
        "module": {"model": module, **beside},
        "lightning": {"state_dict": {f"net.{key}": value for key, value in state.items()}, "hyper_parameters": beside},
        "ema": {"state_dict": state, "state_dict_ema": dict(state), **beside},
        "pruned": {"net": {f"{key}_orig": value for key, value in state.items()}, **beside},
        "pickle": {"model": state, **beside},
        "arrays": {"model": {key: value.numpy() for key, value in state.items()}, **beside},
        "alone": state,
        "two": {"a": state, "b": state, **beside},
        "empty": beside,
        "list": [beside, state],
    }
    file = io.BytesIO()
    if kind in ("pickle", "arrays"):
        pickle.dump(contents[kind], file)
    else:
        torch.save(contents[kind], file, _use_new_zipfile_serialization=kind not in ("legacy", "list"))
    return file.getvalue()


CHECKPOINTS = ("zip", "legacy", "module", "lightning", "ema", "pruned", "pickle", "arrays", "alone", "two", "empty", "list")


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_mutated_checkpoint_runs_nothing_and_is_read_or_refused(kind):
    whole = checkpoint(kind)
    rng = np.random.default_rng(len(kind))
    # The pickle is at the beginning; at the end are an archive's directory or the numbers.
    begin = min(len(whole), 30_000)
    opcodes = b"cRbo\x81\x82\x92i(tQP0.}]\x85\x86\x93\x94h"
    started = time.monotonic()
    for _ in range(60):
        changed = bytearray(whole)
        for place in rng.integers(0, begin, rng.integers(1, 12)):
            changed[place] = rng.choice([rng.integers(256), *opcodes])
        if rng.random() < 0.2:
            changed = changed[: rng.integers(1, len(changed))]
        with open("n.pt", "wb") as file:
            file.write(changed)
        attempt("n.pt")  # a ModelError of one line, or nothing
        assert sorted(os.listdir()) == ["n.pt"]
    assert time.monotonic() - started < 60
