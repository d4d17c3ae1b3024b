"""Damaged or hostile sample data: one clear error, nothing written, little memory allocated."""

import gzip
import io
import pickle
import tarfile
import tempfile
import tracemalloc
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from conftest import random_network
from vgg import Error, samples
from vgg.samples.reading import opened

MB = 2**20


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The parts of sample data, as names and bytes; small, so that a flipped byte is likely to matter."""
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    random_network(width=1 / 64).write(path)
    given = numpy_helper.from_array(np.random.RandomState(0).normal(size=(1, 3, 32, 32)).astype(np.float32), "data")
    wanted = numpy_helper.from_array(np.zeros((1, 7), np.float32), "logits")
    return {
        "tiny/test_data_set_0/input_0.pb": given.SerializeToString(),
        "tiny/test_data_set_0/output_0.pb": wanted.SerializeToString(),
        "tiny/tiny.onnx": path.read_bytes(),
    }


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """The folder for temporary files, which must be empty afterwards."""
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    return spool


def packed(parts, *members, compress=True):
    """A tarball of the parts, and of further members: TarInfo with the bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in parts.items():
            tar.addfile(member(name, len(content)), io.BytesIO(content))
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), 1) if compress else plain.getvalue()


def member(name, size=0, kind=tarfile.REGTYPE, link="", **more):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    for key, value in more.items():
        setattr(info, key, value)
    return info


def refused(path, content, message):
    """The bytes are refused with one line, without much memory; nothing is left."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(Error, match=message) as caught, opened(path, with_model=True):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert peak < 8 * MB + 2 * len(content)


def test_valid_sample_data_is_read(parts, tmp_path, spool):
    (tmp_path / "s.tar.gz").write_bytes(packed(parts))
    assert len(samples.check(tmp_path / "s.tar.gz")) == 1
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize(
    ("info", "content"),
    [
        (member("../escaped.onnx", 1), b"x"),
        (member("tiny/../../escaped.onnx", 1), b"x"),
        (member("/tmp/escaped.onnx", 1), b"x"),
        (member("tiny/test_data_set_0/../../../escaped.pb", 1), b"x"),
        (member("tiny/link.onnx", kind=tarfile.SYMTYPE, link="/etc/passwd"), b""),
        (member("tiny/link.onnx", kind=tarfile.LNKTYPE, link="tiny/tiny.onnx"), b""),
        (member("tiny/link", kind=tarfile.SYMTYPE, link=".."), b""),
        (member("tiny/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (member("tiny/disk", kind=tarfile.BLKTYPE, devmajor=8), b""),
        (member("tiny/pipe", kind=tarfile.FIFOTYPE), b""),
        (member("tiny/\x1b[2Jtwo\nlines.onnx", 1), b"x"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
@pytest.mark.parametrize("compress", [True, False])
def test_a_member_that_does_not_belong_to_sample_data_is_refused(parts, tmp_path, spool, info, content, compress):
    refused(
        tmp_path / "s.tar.gz",
        packed(parts, (info, content), compress=compress),
        "untrusted archive: .* does not belong to sample data",
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s.tar.gz", "spool"]


def header(info):
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse(size):
    """A sparse file that claims a size and has no bytes."""
    buffer = bytearray(header(member("tiny/sparse.onnx", 0, tarfile.GNUTYPE_SPARSE)))
    buffer[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    buffer[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(buffer))[0]
    return bytes(buffer) + bytes(1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(header(member("bomb.onnx", 100 * MB)) + bytes(100 * MB), 1), "far more than its own size"),
        (gzip.compress(header(member("a.pb", 100 * MB)) + bytes(100 * MB), 1), "far more than its own size"),
        (gzip.compress(header(member("test_data_set_0/input_0.pb", 65 * MB)) + bytes(65 * MB), 1), "too many for sample data"),
        (gzip.compress(header(member("pax", 200 * MB, tarfile.XHDTYPE)) + b"9" * 200 * MB, 1), "far more than its own size"),
        (gzip.compress(header(member("name", 200 * MB, tarfile.GNUTYPE_LONGNAME)) + b"9" * 200 * MB, 1), "far more"),
        (header(member("name", 8 * 2**60, tarfile.GNUTYPE_LONGNAME)), "far more than its own size"),
        (header(member("pax", 8 * 2**60, tarfile.XGLTYPE)), "far more than its own size"),
        (header(member("big.onnx", 8 * 2**60)), "incomplete"),
        ((header(member("name", 5, tarfile.GNUTYPE_LONGNAME)) + b"name\0".ljust(512, b"\0")) * 3000, "damaged"),
        (b"".join(header(member(f"tiny/{index}")) for index in range(1001)) + bytes(1024), "does not belong to sample data"),
        (sparse(8 * 2**40), "does not belong to sample data"),
        (header(member("a.onnx", 0)) * 2 + bytes(1024), "can't be unpacked: File exists"),
        (b"", "incomplete"),
        (b"no tarball at all" * 99, "not a tarball"),
        (gzip.compress(b"no tarball at all" * 99), "not a tarball"),
        (b"\x1f\x8b", "incomplete"),
        (b"BZh91AY&SY" + bytes(999), "not a tarball"),
    ],
    ids=range(17),
)
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, spool, content, message):
    refused(tmp_path / "s.tar.gz", content, message)
    assert list(spool.iterdir()) == []


def external():
    """A tensor with its data in another file."""
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        external(),
        TensorProto(data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"1234"),
        TensorProto(data_type=TensorProto.FLOAT, dims=[-1, 3], raw_data=b"1234"),
        TensorProto(data_type=TensorProto.FLOAT, dims=[2**62, 4], float_data=[1.0]),
        TensorProto(data_type=TensorProto.STRING, dims=[1], string_data=[b"text"]),
        TensorProto(data_type=99, dims=[1], raw_data=b"1234"),
        TensorProto(),
        onnx.ModelProto(ir_version=8, producer_name="not a tensor"),
    ],
    ids=range(8),
)
def test_a_hostile_tensor_is_refused(parts, tmp_path, spool, tensor):
    damaged = {**parts, "tiny/test_data_set_0/input_0.pb": tensor.SerializeToString()}
    refused(tmp_path / "s.tar.gz", packed(damaged), r"input_0\.pb: damaged, or not sample data")


class Harm:
    """The object of a hostile pickle."""

    def __reduce__(self):
        return open, ("harm was done", "w")


def npz(**arrays):
    """An archive of .npy files: arrays, or bytes as they are."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            if not isinstance(array, bytes):
                np.save(data, array)
            archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else data.getvalue())
    return content.getvalue()


def npy(shape, dtype="<f4", content=b""):
    """A .npy file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    "content",
    [
        npz(inputs=npy((1,), "|O", pickle.dumps(Harm())), outputs=np.zeros((1, 7))),
        npz(inputs=np.array([Harm()]), outputs=np.zeros((1, 7))),
        npz(inputs=npy((2**50,)), outputs=np.zeros((1, 7))),
        npz(inputs=npy((2**62, 2**62)), outputs=np.zeros((1, 7))),
        npz(inputs=npy("(" * 500 + ")" * 500), outputs=np.zeros((1, 7))),
        npz(inputs=np.zeros(20 * MB, np.float32), outputs=np.zeros((1, 7))),
        npz(inputs=np.array(["text"]), outputs=np.zeros((1, 7))),
        npz(inputs=np.zeros((1, 3, 32, 32))),
        npz(inputs=b"", outputs=b""),
        b"PK\x05\x06" + bytes(18),
        b"nothing",
    ],
    ids=range(11),
)
def test_a_hostile_npz_is_refused(tmp_path, spool, monkeypatch, content):
    monkeypatch.chdir(spool)
    (tmp_path / "one").mkdir()
    refused(tmp_path / "one" / "s.npz", content, ": damaged, or not sample data")
    assert list(spool.iterdir()) == []


def damage(content, cut, flips):
    """Bytes cut at a share of their length, with some flipped."""
    damaged = bytearray(content[: int(cut * len(content))])
    for place, bit in flips:
        if damaged:
            damaged[int(place * len(damaged)) % len(damaged)] ^= 1 << bit
    return bytes(damaged)


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=4)
FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(path, content):
    """The bytes are read, or refused with one line; nothing is left."""
    path.write_bytes(content)
    message = ""
    try:
        with opened(path, with_model=True) as (sets, model):
            assert all(isinstance(one.name, str) for one in sets)
            assert model is None or model.is_file()
    except Error as error:
        message = str(error)
    assert message == "" or message.isprintable()


@FUZZ
@given(st.sampled_from([1.0, 0.0]) | st.floats(0, 1), FLIPS, st.booleans())
@example(1.0, [], True)
def test_a_damaged_tarball_is_one_error(parts, tmp_path, spool, cut, flips, compress):
    survives(tmp_path / "s.tar.gz", damage(packed(parts, compress=compress), cut, flips))
    assert list(spool.iterdir()) == []


@FUZZ
@given(st.data())
def test_damage_in_the_headers_is_one_error(parts, tmp_path, spool, data):
    content = bytearray(packed(parts, compress=False))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        starts = [one.offset for one in tar.getmembers()]
    start = data.draw(st.sampled_from(starts))
    place = start + data.draw(st.integers(0, 511))
    content[place : place + 12] = data.draw(st.binary(min_size=1, max_size=12)).ljust(12, b"\0")
    if data.draw(st.booleans()):  # with the right checksum, so that it is accepted
        content[start + 148 : start + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(content[start : start + 512]))[0]
    survives(tmp_path / "s.tar", bytes(content))
    assert list(spool.iterdir()) == []


@FUZZ
@given(st.floats(0, 1), FLIPS, st.sampled_from(["input_0.pb", "output_0.pb", "test_data_0.npz"]))
def test_a_damaged_part_is_one_error(parts, tmp_path, cut, flips, name):
    place = tmp_path / "tiny"
    (place / "test_data_set_0").mkdir(parents=True, exist_ok=True)
    for old in place.rglob("*.*"):
        old.unlink()
    old = npz(inputs=np.zeros((1, 1, 3, 32, 32), np.float32), outputs=np.zeros((1, 1, 7), np.float32))
    path = place / name if name.endswith("npz") else place / "test_data_set_0" / name
    path.write_bytes(damage({**{p.rpartition("/")[2]: c for p, c in parts.items()}, "test_data_0.npz": old}[name], cut, flips))
    message = ""
    try:
        with opened(place, with_model=True) as (sets, _):
            assert len(sets) == 1
    except Error as error:
        message = str(error)
    assert message == "" or message.isprintable()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0.5, 1), FLIPS)
def test_damaged_data_is_checked_or_one_error(parts, tmp_path, spool, cut, flips):
    (tmp_path / "s.tar").write_bytes(damage(packed(parts, compress=False), cut, flips))
    message = ""
    try:
        for one in samples.check(tmp_path / "s.tar", engine="onnxruntime"):
            assert one.passed in (True, False)
    except Error as error:
        message = str(error)
    assert message == "" or message.isprintable()
    assert list(spool.iterdir()) == []
