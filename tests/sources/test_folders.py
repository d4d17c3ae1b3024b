"""Folders as they are on disks: leftovers of systems, links, other files, patterns, and class folders with numbers."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from miniature import jpeg, pack
from vgg import Error, Labels, Notice, sources
from vgg.sources import check, find, imagenet, shards

LEFT = (
    ".git/a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", ".thumbnails/a.jpg", "__MACOSX/cat/._a.jpg", "._a.jpg", ".DS_Store",
    ".Trash-1000/files/a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.jpg", "@Recycle/a.jpg", "$RECYCLE.BIN/a.jpg",
    "System Volume Information/a.jpg", "lost+found/a.jpg", "Thumbs.db", "desktop.ini", "__pycache__/a.jpg",
)  # fmt: skip
DIGITS = tuple(map(str, range(11)))


def made(root, *names):
    for number, name in enumerate(names):
        Path(root, name).parent.mkdir(parents=True, exist_ok=True)
        Path(root, name).write_bytes(jpeg(number))


def listed(images):
    return [name for name, _ in find(images)]


def vgg(*arguments, code="from vgg.cli import main; main()"):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


def noticed(function, *arguments):
    """The result of a function, and the notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*arguments)
    assert all(one.category is Notice for one in caught)
    return result, [str(one.message) for one in caught]


# fsspec's clients don't close all of their connections.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("depth", ["", "cat/", "cat/deep/"])
def test_what_systems_leave_in_folders_is_no_image_and_no_class(place, depth):
    made("data", "cat/a.jpg", "cat/deep/b.jpg", "dog/c.jpg", *(depth + name for name in LEFT))
    images = ["data/cat/a.jpg", "data/cat/deep/b.jpg", "data/dog/c.jpg"]
    assert listed("data") == images
    assert [(one.name, one.target) for one in sources.open("data", 2)] == [
        ("cat/a.jpg", 0), ("cat/deep/b.jpg", 0), ("dog/c.jpg", 1),
    ]  # fmt: skip
    assert sources.classes_of("data") == (2, Labels(("cat", "dog")))
    assert listed("data/**") == listed("data/**/*") == listed("data/**/*.jpg") == images
    assert listed("data/*") == listed("data/*/") == listed("data/[cd]*") == images
    # What is named is taken.
    assert listed(f"data/{depth}._a.jpg") == listed(f"data/{depth}._*.jpg") == [f"data/{depth}._a.jpg"]
    assert listed(f"data/{depth}.thumbnails") == listed(f"data/{depth}.th*/*") == [f"data/{depth}.thumbnails/a.jpg"]


def test_leftovers_in_shards_object_stores_and_a_prepared_imagenet(place, store):
    content = pack({"./._a.jpg": b"x", "./a.jpg": jpeg(1), "./a.cls": b"1", "__MACOSX/._a.jpg": b"x", "@eaDir/a.jpg": b"x"})
    Path("0.tar").write_bytes(content)
    assert listed("0.tar") == ["0.tar/./a.jpg"]
    assert len(shards.read(Path("0.tar"), int)) == 1
    for name in ("cat/a.jpg", "cat/._a.jpg", ".Trash/b.jpg", "__MACOSX/cat/c.jpg", "dog/.thumbnails/a.jpg", "dog/b.jpg"):
        store.pipe_file(f"bucket/data/{name}", jpeg(1))
    names = ["s3://bucket/data/cat/a.jpg", "s3://bucket/data/dog/b.jpg"]
    assert listed("s3://bucket/data") == listed("s3://bucket/data/*/*") == listed("s3://bucket/data/**/*.jpg") == names
    assert listed("s3://bucket/data/cat/._*") == ["s3://bucket/data/cat/._a.jpg"]
    assert sources.classes_of("s3://bucket/data") == (2, Labels(("cat", "dog")))
    made("net", "train/n01440764/n01440764_1.JPEG", "train/n01440764/._n01440764_1.JPEG", "train/__MACOSX/x/a.JPEG")
    assert {one.problem for one in check.check(Path("net"))[1]} == {
        "is missing", f"has 1 images; the published archive has {imagenet.IMAGES['train']:,}",
    }  # fmt: skip


def test_the_images_of_a_shard_without_classes_may_share_a_key(place):
    Path("0.tar").write_bytes(pack({"a.jpg": jpeg(1), "a.png": jpeg(2)}))
    assert listed("0.tar") == ["0.tar/a.jpg", "0.tar/a.png"]


def test_links_are_followed_once(place):
    made("disk", "a.jpg", "deep/b.jpg")
    made("photos", "own/c.jpg", ".store/d.jpg")
    for link, target in {
        "photos/0-self": ".", "photos/0-sibling": "own", "photos/1-disk": "../disk", "photos/2-again": "../disk/deep",
        "photos/3-file.jpg": "own/c.jpg", "photos/4-hidden": ".store", "photos/own/up": "..", "disk/back": "../photos",
        "photos/5-gone.jpg": "nowhere", "photos/6-gone": "/nowhere", "photos/7-itself.jpg": "7-itself.jpg",
    }.items():  # fmt: skip
        Path(link).symlink_to(target)
    names = [
        "photos/1-disk/a.jpg", "photos/1-disk/deep/b.jpg", "photos/3-file.jpg", "photos/4-hidden/d.jpg", "photos/own/c.jpg",
    ]  # fmt: skip
    assert noticed(listed, "photos") == (names, ["photos: left out 3 broken links"])
    assert noticed(listed, "photos/")[0] == names
    images, _ = noticed(listed, "photos/**/*.jpg")
    assert len(images) == len({os.path.realpath(one) for one in images}) + 1  # the link to a file
    assert {*names} - {"photos/4-hidden/d.jpg"} <= {*images}
    assert noticed(listed, "photos/*.jpg") == (["photos/3-file.jpg"], ["photos/*.jpg: left out 2 broken links"])
    assert noticed(listed, "photos/?-disk/*.jpg")[0] == ["photos/1-disk/a.jpg"]


def test_class_folders_may_be_links(place):
    made("disk/felines", "a.jpg")
    made("data", "dog/b.jpg")
    Path("data/cat").symlink_to("../disk/felines")
    Path("data/loop").symlink_to(".")
    Path("data/dog/loop").symlink_to("..")
    assert [(one.name, one.target) for one in sources.open("data", 2)] == [("cat/a.jpg", 0), ("dog/b.jpg", 1)]
    assert sources.classes_of("data") == (2, Labels(("cat", "dog")))


def test_files_that_are_left_out_are_counted(place):
    made("a", "a.jpg", "b.CR2", "c.nef", "d/e.mov", "f.svg", "notes.txt", "p.psd")
    kinds = "1 Photoshop file, 1 SVG file, 2 camera raw files, 1 video file"
    unsupported = "unsupported formats; convert the images to JPEG or PNG"
    assert noticed(listed, "a") == (["a/a.jpg"], [f"a: left out {kinds}: {unsupported}"])
    (dataset, notes) = noticed(sources.unlabelled, "a")
    assert (len(dataset), len(notes)) == (1, 1)
    made("b", "cat/a.jpg", "dog/b.jpg", "dog/c.pdf")
    assert noticed(sources.open, "b", 2)[1] == [f"b: left out 1 PDF file: {unsupported}"]
    made("a", "without-suffix")
    assert noticed(listed, "a")[0] == ["a/a.jpg"]
    for named in ("a/b.CR2", "a/without-suffix"):  # what is named is read, whatever its suffix
        [(name, sample)], notes = noticed(find, named)
        assert (name, sample.image().size, notes) == (named, (40, 30), [])


def test_without_pillow_heif_heic_is_counted_and_named(place):
    made("phone", "a.jpg", "IMG_1.HEIC", "b/IMG_2.heif")
    Path("phone/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    code = """
import sys
sys.modules["pillow_heif"] = None
from vgg.cli import main
main()
"""
    done = vgg("classify", "phone", "--format", "csv", code=code)
    requires = "HEIC requires pillow_heif; install with `pip install 'vgg[heif]'`"
    assert (done.returncode, done.stderr) == (0, f"vgg: note: phone: left out 2 HEIC files: {requires}\n")
    done = vgg("classify", "phone/IMG_1.HEIC", "--format", "csv", code=code)
    assert (done.returncode, done.stderr) == (1, f"vgg: phone/IMG_1.HEIC: {requires}\n")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("shoot [2024]/*.png", ["shoot [2024]/a.png"]),
        ("shoot [2024]/**/*.png", ["shoot [2024]/a.png", "shoot [2024]/x [1]/b.png"]),
        ("shoot [2024]/x [1]/[b].png", ["shoot [2024]/x [1]/b.png"]),
        ("shoot [[]2024]/*.png", ["shoot [2024]/a.png"]),
        ("./shoot [2024]/?.png", ["shoot [2024]/a.png"]),
        ("shoot*/*.png", ["shoot 2/c.png", "shoot [2024]/a.png"]),
        ("shoot [0-9]", ["shoot 2/c.png"]),
        ("shoot [2024]", ["shoot [2024]/a.png", "shoot [2024]/x [1]/b.png"]),
        (r"shoot [2024]\*.png", ["shoot [2024]/a.png"]),
        (r"shoot [2024]\x [1]\b.png", ["shoot [2024]/x [1]/b.png"]),
        ("~/*.png", ["{home}/h.png"]),
        ("~/h.png", ["{home}/h.png"]),
        ("**/h.png", ["home/h.png"]),
        ("**", ["home/h.png", "shoot 2/c.png", "shoot [2024]/a.png", "shoot [2024]/x [1]/b.png"]),
    ],
)
def test_patterns(place, monkeypatch, pattern, found):
    made(".", "shoot [2024]/a.png", "shoot [2024]/x [1]/b.png", "shoot 2/c.png", "home/h.png")
    monkeypatch.setenv("HOME", str(place / "home"))
    assert listed(pattern) == [one.format(home=place / "home") for one in found]
    if not pattern.startswith(("~", ".")):
        assert listed(str(place / pattern)) == [str(place / one) for one in found]


def test_patterns_that_match_nothing(place):
    made(".", "a.png/b.jpg", "c.jpg")
    for pattern in ("*.gif", "c.jpg/*", "gone/*.jpg", "*/x/*", "[", "c.jpg/**/*.png"):
        with pytest.raises(Error, match=r"matches no file|not found|has no images"):
            find(pattern)[0][1].read()


def test_brackets_in_object_stores(store):
    store.pipe_file("bucket/shoot [2024]/a.png", jpeg(1))
    assert listed("s3://bucket/shoot [2024]/*.png") == ["s3://bucket/shoot [2024]/a.png"]


def test_lists_may_have_the_backslashes_of_windows(place):
    made(".", "cat/a.jpg", "dog/b.jpg")
    Path("list.csv").write_text("image,label\ncat\\a.jpg,0\ndog\\b.jpg,1\n")
    assert [one.read() for one in sources.open("list.csv", 2)] == [jpeg(0), jpeg(1)]


def numbers(place, names, classes, labels=None):
    made(place, *(f"{name}/x.jpg" for name in names))
    dataset, notes = noticed(sources.open, place, classes, labels)
    return {one.name.split("/")[0]: one.target for one in dataset}, notes


def test_class_folders_with_numbers_are_the_classes_with_these_numbers(place):
    found, notes = numbers("digits", DIGITS, 11)
    assert found == {name: int(name) for name in DIGITS}
    assert notes == [
        "digits: class folders are the numbers of the classes: 10 is class 10, not 2 as in the alphabetical order of "
        "torchvision's ImageFolder; for another order, name the classes with --labels FILE"
    ]
    assert numbers("few", ("3", "7"), 11) == ({"3": 3, "7": 7}, [])
    assert numbers("padded", [f"{n:03}" for n in range(11)], 11) == ({f"{n:03}": n for n in range(11)}, [])
    with pytest.raises(Error, match=r"/01: is class 1, as is .*/1|/1: is class 1, as is .*/01"):
        numbers("twice", ("0", "1", "01"), 3)


def test_labels_decide_what_class_folders_with_numbers_are(place):
    alphabetical = Labels(tuple(sorted(DIGITS)))  # as torchvision's ImageFolder numbers them
    found, notes = numbers("digits", DIGITS, 11, alphabetical)
    assert found == {name: index for index, name in enumerate(alphabetical.names)}
    assert found["10"] == 2
    assert notes == []
    assert numbers("digits", DIGITS, 11, Labels(tuple("abcdefghijk")))[0]["10"] == 10
    assert numbers("digits", DIGITS, 11, Labels(DIGITS))[0]["10"] == 10


def test_a_notice_says_how_other_numbers_in_names_are_ordered(place):
    names = [f"class_{n}" for n in range(1, 11)]
    found, notes = numbers("classes", names, 10)
    assert (found["class_10"], found["class_2"]) == (1, 2)
    assert notes == [
        "classes: class folders are in the alphabetical order of torchvision's ImageFolder: class_10 is class 1, class_2 is "
        "class 2; for another order, name the classes with --labels FILE"
    ]
    assert numbers("flowers", [str(n) for n in range(1, 11)], 10)[0]["10"] == 1
    assert numbers("prefixed", ("001_cat", "002_dog", "010_eel"), 3) == ({"001_cat": 0, "002_dog": 1, "010_eel": 2}, [])


def test_a_new_network_has_the_numbers_of_its_folders_as_labels(place):
    made("digits", *(f"{name}/x.jpg" for name in DIGITS))
    classes, labels = sources.classes_of("digits")
    assert (classes, labels) == (11, Labels(DIGITS))
    dataset, notes = noticed(sources.open, "digits", classes, labels)
    assert all(one.name == f"{one.target}/x.jpg" for one in dataset)
    assert notes == []
    made("flowers", *(f"{number}/x.jpg" for number in range(1, 12)))
    classes, labels = sources.classes_of("flowers")
    assert labels == Labels(tuple(map(str, range(1, 12))))
    assert all(one.name == f"{one.target + 1}/x.jpg" for one in sources.open("flowers", classes, labels))


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
@pytest.mark.parametrize("format", ["table", "json", "jsonl", "csv"])
def test_strange_names_are_printed_safely(place, format):
    made("odd", "new\nline.jpg", "esc\x1b[31m.jpg", os.fsdecode(b"byte\xff.jpg"), "ümlaut.JPEG", "CAPS.JFIF", "w.Webp", "t.TIF")
    done = vgg("classify", "odd", "--format", format, "--top", "1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout or format == "csv"
    assert "byte\\udcff.jpg" in done.stdout.replace("\\\\", "\\")
    assert len([line for line in done.stdout.splitlines() if "odd/" in line]) == 7
