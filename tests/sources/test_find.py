"""Every kind of place, as any images and as labelled ones."""

import gc
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import EXAMPLES
from loopback import serving
from miniature import jpeg, pack
from training_helpers import cifar_folder
from vgg import Error, ImageError, Labels, sources
from vgg.sources import find, stores

PETS = Labels(("cat", "dog", "eel"))
SHARD = pack({"a.jpg": jpeg(1), "a.cls": b"2", "x/b.png": jpeg(2), "x/b.cls": b"dog"})

# fsspec's clients don't close all of their connections.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a b.jpg", "deep/c.PNG", "deep-er/d.jpg", ".hidden/e.jpg")):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_bytes(jpeg(number))
    Path("photos/notes.md").write_text("no image")
    Path("0.tar").write_bytes(SHARD)
    return tmp_path


def listed(images):
    return [name for name, _ in find(images)]


def test_files_folders_and_globs_are_named_as_they_are_given(place):
    expected = ["photos/a b.jpg", "photos/deep/c.PNG", "photos/deep-er/d.jpg"]
    assert listed("photos") == listed("photos/") == listed(Path("photos")) == expected
    assert listed("./photos") == expected
    assert listed(str(place / "photos")) == [str(place / name) for name in expected]
    assert listed("photos/deep*") == expected[1:]
    assert listed(["photos/a b.jpg", "missing.jpg"]) == ["photos/a b.jpg", "missing.jpg"]
    assert [image.read() for _, image in find("photos/deep*")] == [jpeg(1), jpeg(2)]
    os.chdir("photos")
    assert listed(".") == [name.removeprefix("photos/") for name in expected]
    assert listed((place / "photos/a b.jpg").as_uri()) == [str(place / "photos/a b.jpg")]
    with pytest.raises(ImageError, match=r"\*\.gif: matches no file"):
        find("*.gif")
    with pytest.raises(ImageError, match=r"missing\.jpg: file or folder not found"):
        find("missing.jpg")[0][1].read()


def test_lists_may_have_classes_and_are_relative_to_themselves(place):
    Path("photos/list.txt").write_text("\ufeffa b.jpg\n\ndeep/c.PNG\tcat\ndeep-er/d.jpg,1\n" + str(place / "0.tar") + "\n")
    names = ["photos/a b.jpg", "photos/deep/c.PNG", "photos/deep-er/d.jpg", f"{place}/0.tar/a.jpg", f"{place}/0.tar/x/b.png"]
    assert listed("photos/list.txt") == names
    assert [image.read() for _, image in find("photos/list.txt")] == [jpeg(n) for n in (0, 1, 2, 1, 2)]
    assert [one.name for one in sources.unlabelled("photos/list.txt")][:2] == ["a b.jpg", "deep/c.PNG"]


def test_shards_and_cifar10_are_opened(place):
    assert listed(["0.tar", "photos/deep"]) == ["0.tar/a.jpg", "0.tar/x/b.png", "photos/deep/c.PNG"]
    Path("0.tar").rename("photos/deep/0.tar")
    assert listed("photos/deep") == ["photos/deep/0.tar/a.jpg", "photos/deep/0.tar/x/b.png", "photos/deep/c.PNG"]
    assert [one.name for one in sources.unlabelled("photos")][1:3] == ["deep/0.tar/a.jpg", "deep/0.tar/x/b.png"]
    records = find(cifar_folder(place / "cifar"))
    assert (len(records), records[63][0]) == (64, f"{place}/cifar/data_batch_1.bin/63")
    Path("broken.tar").write_bytes(SHARD[:700])
    assert listed([".", "broken.tar"]) == ["0.tar" if one == "0.tar" else one for one in listed(".")] + ["broken.tar"]
    for read in (lambda: find("broken.tar")[0][1].read(), lambda: sources.unlabelled("broken.tar")):
        with pytest.raises(ImageError, match=r"broken\.tar: is damaged, truncated, or not a tar file"):
            read()


def test_a_dot_in_a_name_hides_no_image_of_a_shard(place):
    Path("dots.tar").write_bytes(pack({"Screenshot at 10.15.30.jpg": jpeg(1), "scan.v2.png": jpeg(2), "a.v2.txt": b""}))
    assert listed("dots.tar") == ["dots.tar/Screenshot at 10.15.30.jpg", "dots.tar/scan.v2.png"]


def test_urls_are_read_through_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = "http://images.invalid/a.jpg"
    with serving({url: jpeg(1)}) as server:
        monkeypatch.setenv("http_proxy", server.address)
        assert find(url)[0][1].read() == jpeg(1)


@pytest.mark.parametrize(
    "damage",
    {
        "a negative size": lambda header: header[:124] + struct.pack(">Bxxxq", 255, -512) + header[136:],
        "a name of any length": lambda header: (
            b"././@LongLink".ljust(124, b"\0") + b"\x80" + b"\x7f" * 11 + header[136:156] + b"L"
        ),
    }.values(),
)
def test_a_hostile_shard_is_an_error(place, damage):
    header = damage(SHARD[:512])
    header += SHARD[len(header) : 512]
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    Path("hostile.tar").write_bytes(header[:148] + b"%06o\0 " % total + header[156:] + SHARD[512:])
    with pytest.raises(Error, match=r"hostile\.tar: is damaged, truncated, or not a tar file"):
        sources.unlabelled("hostile.tar")


def test_images_in_memory_are_numbered(place):
    image = Image.open("photos/a b.jpg")
    stack = np.zeros((2, 30, 40, 3), np.uint8)
    assert listed(stack) == ["image 0", "image 1"]
    assert listed(image) == listed(stack[0]) == listed(b"") == ["image"]
    dataset = sources.unlabelled("photos/deep")
    assert listed([image, ("mine", b""), *dataset]) == ["image 0", "mine", "c.PNG"]
    with pytest.raises(ImageError, match="no images given"):
        find([])


def test_what_is_a_single_image(place):
    Path("list.txt").write_text("photos/a b.jpg")
    for one in (
        "photos/a b.jpg",
        Path("photos/a b.jpg"),
        b"",
        np.zeros((3, 4, 3), np.uint8),
        sources.Sample("a", 0, "a"),
        "https://host/a.jpg",
    ):
        assert sources.is_single(one)
    for many in ("photos", "photos/*", "0.tar", "list.txt", "s3://bucket/folder", "s3://bucket/0.tar", [b""]):
        assert not sources.is_single(many)


def test_urls_of_images_shards_and_lists(place):
    files = {"a.jpg": jpeg(7), "0.tar": SHARD, "list.txt": b"a.jpg cat\n"}
    with serving(files) as server:
        at = server.address
        found = find([f"{at}/a.jpg", f"{at}/0.tar", f"{at}/list.txt"])
        assert [name for name, _ in found] == [f"{at}/a.jpg", f"{at}/0.tar/a.jpg", f"{at}/0.tar/x/b.png", f"{at}/a.jpg"]
        assert [image.read() for _, image in found] == [jpeg(7), jpeg(1), jpeg(2), jpeg(7)]
        [copy] = {image.path for _, image in found[1:3]}
        assert Path(copy).parent == Path(tempfile.gettempdir())
        del found
        gc.collect()
        assert not Path(copy).exists()
        for name, expected in (("0.tar", [("0.tar/a.jpg", 2), ("0.tar/x/b.png", 1)]), ("list.txt", [("a.jpg", 0)])):
            dataset = sources.open(f"{at}/{name}", 3, PETS)
            assert [(one.name, one.target) for one in dataset] == expected
            assert [one.image().size for one in dataset] == [(40, 30)] * len(expected)
        assert find(f"{at}/gone.jpg")
        with pytest.raises(ImageError, match=r"/gone\.jpg: file or folder not found"):
            find(f"{at}/gone.jpg")[0][1].read()
        with pytest.raises(ImageError, match=r"/gone\.tar: file or folder not found"):
            find(f"{at}/gone.tar")


def test_class_folders_and_globs_in_an_object_store(place, store):
    for name, seed in (("cat/a.jpg", 1), ("eel/deep/b.jpg", 2)):
        store.pipe_file(f"bucket/data/{name}", jpeg(seed))
    dataset = sources.open("s3://bucket/data/", 3, PETS)
    assert [(one.name, one.target, one.size) for one in dataset] == [
        ("cat/a.jpg", 0, len(jpeg(1))), ("eel/deep/b.jpg", 2, len(jpeg(2))),
    ]  # fmt: skip
    assert dataset.samples[1].read() == jpeg(2)
    assert listed("s3://bucket/data/*/*.jpg") == ["s3://bucket/data/cat/a.jpg"]
    assert sources.classes_of("s3://bucket/data") == (2, Labels(("cat", "eel")))
    store.pipe_file("bucket/split/train/cat/a.jpg", jpeg(1))
    store.pipe_file("bucket/split/val/cat/b.jpg", jpeg(1))
    assert sources.splits("s3://bucket/split") == ("s3://bucket/split/train", "s3://bucket/split/val", None)


def test_splits_of_folders_and_of_cifar10(place):
    assert sources.splits("photos") == ("photos", None, None)
    Path("data/val").mkdir(parents=True)
    assert sources.splits("data") == ("data", None, None)
    Path("data/train").mkdir()
    assert sources.splits(Path("data")) == (str(Path("data/train")), str(Path("data/val")), None)
    Path("data/test").mkdir()
    assert sources.splits("data").test == str(Path("data/test"))
    Path("data/val").rmdir()
    assert sources.splits("data") == sources.Splits(str(Path("data/train")), test=str(Path("data/test")))
    folder = cifar_folder(place / "cifar")
    assert sources.splits(folder) == (str(folder), None, str(folder / "test_batch.bin"))
    assert sources.is_cifar(folder)
    assert not sources.is_cifar("photos")


def test_a_folder_that_cannot_be_listed_is_an_error(place, monkeypatch):
    def fail(folder):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(stores.os, "scandir", fail)
    with pytest.raises(Error, match="photos: permission denied"):
        find("photos")


def test_local_images_need_no_other_package():
    code = f"""
import sys
sys.modules["fsspec"] = sys.modules["pyarrow"] = None
from vgg import Error, sources
print(len(sources.find({str(EXAMPLES)!r})), {{"tarfile", "urllib.request"}} & set(sys.modules))
try:
    sources.find("s3://bucket/*.jpg")
except Error as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    error = "access to URLs requires fsspec; install with `pip install 'vgg[scale]'`"
    assert done.stdout == f"{len(list(EXAMPLES.glob('*.*g')))} set()\n{error}\n"
