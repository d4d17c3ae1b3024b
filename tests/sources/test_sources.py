import tarfile
from importlib import import_module

import pytest

from miniature import jpeg, pack
from vgg import Error, ImageError, Labels, sources
from vgg.images import MAX_BYTES
from vgg.labels import imagenet, resolver
from vgg.sources import Sample, shards

PETS = Labels(("cat", "dog", "eel"))
BIRDS = Labels(("crane", "owl", "crane"), ("n00000001", "n00000002", "n00000003"))


def made(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(1))
    return root


def listed(dataset):
    return [(sample.name, sample.target) for sample in dataset]


def test_class_folders_are_named_by_wordnet_ids_or_names_and_walked(tmp_path):
    made(tmp_path, "eel/b.jpg", "cat/a.JPEG", "cat/deep/c.png", ".hidden/d.jpg", "cat/notes.txt")
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no class")
    assert listed(sources.open(tmp_path, 3, PETS)) == [("cat/a.JPEG", 0), ("cat/deep/c.png", 0), ("eel/b.jpg", 2)]
    made(tmp_path / "w", "n00000003/a.jpg", "owl/b.jpg")
    assert listed(sources.open(tmp_path / "w", 3, BIRDS)) == [("n00000003/a.jpg", 2), ("owl/b.jpg", 1)]


def test_without_labels_class_folders_stand_in_their_order(tmp_path):
    made(tmp_path, "b/1.jpg", "a/2.jpg")
    assert listed(sources.open(tmp_path, 2)) == [("a/2.jpg", 0), ("b/1.jpg", 1)]
    with pytest.raises(Error, match="has 2 class folders; the model has 3 classes and no labels"):
        sources.open(tmp_path, 3)


def test_lists_take_tabs_commas_and_spaces_numbers_ids_and_names(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeffa b.jpg\towl\n\nsub/c,d.jpg,1\ne.jpg 2\nf g.jpg, n00000001\n")
    found = sources.open(tmp_path / "list.txt", 3, BIRDS)
    assert listed(found) == [("a b.jpg", 1), ("sub/c,d.jpg", 1), ("e.jpg", 2), ("f g.jpg", 0)]
    assert found.samples[1].path == str(tmp_path / "sub/c,d.jpg")


def test_shards_alone_or_in_a_folder(tmp_path):
    content = pack({"x/a.jpg": jpeg(1), "x/a.cls": b"2\n", "x/a.json": b"{}", "b.cls": b"dog", "b.png": b"no image"})
    (tmp_path / "0.tar").write_bytes(content)
    with open(tmp_path / "1.tar", "wb") as file:
        shards.write(file, [("k", jpeg(3), 0)])
    found = sources.open(tmp_path, 3, PETS)
    assert listed(found) == [("0.tar/x/a.jpg", 2), ("0.tar/b.png", 1), ("1.tar/k.jpg", 0)]
    assert [sample.read() for sample in found] == [jpeg(1), b"no image", jpeg(3)]
    assert listed(sources.open(tmp_path / "1.tar", 3)) == [("1.tar/k.jpg", 0)]


BAD = {
    "an empty folder": ({}, r": has no class folders in it, nor \.tar shards"),
    "empty class folders": ({"cat/": ""}, r": has no images in it"),
    "no class": ({"bird/a.jpg": "x"}, r"/bird: unknown class 'bird'; the model has 3"),
    "a level too high": ({"val/cat/a.jpg": "x"}, r"/val: unknown class 'val'; the model has 3; did you mean \S*/val\?"),
    "an empty list": ({"list.txt": "\n"}, r"/list\.txt: has no images in it"),
    "a list that is no text": ({"list.txt": b"\xff\xfe\x00"}, r"/list\.txt: a list of images must be UTF-8 text"),
    "a line without a class": ({"list.txt": "a.jpg 1\nb.jpg\n"}, r"/list\.txt, line 2: has no class"),
    "a class beyond the last": ({"list.txt": "a.jpg 3"}, r"/list\.txt, line 1: unknown class '3'; the model has 3"),
    "an image twice": ({"list.txt": "a.jpg 1\na.jpg 2"}, r"/list\.txt, line 2: a\.jpg is already in the list, as class 1"),
    "no tar file": ({"0.tar": "hello" * 300}, r"/0\.tar: is damaged, truncated, or not a tar file"),
    "an empty shard": ({"0.tar": pack({})}, r": has no images in it"),
    "an image without a class": ({"0.tar": pack({"a.jpg": b"x"})}, r"/0\.tar: a\.jpg has no class; a\.cls is missing"),
    "a key twice": ({"0.tar": pack({"a.jpg": b"x", "a.png": b"x"})}, r"/0\.tar: a has two images"),
    "a class that is none": (
        {"0.tar": pack({"a.jpg": b"x", "a.cls": b"9"})},
        r"/0\.tar: a\.cls: unknown class '9'; the model has 3",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_datasets_are_one_clear_line(tmp_path, kind):
    files, message = BAD[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    place = tmp_path / "list.txt" if "list.txt" in files else tmp_path
    with pytest.raises(Error, match=message) as raised:
        sources.open(place, 3, PETS)
    assert "\n" not in str(raised.value)


def test_classes_with_two_meanings_and_two_folders_of_one_class_are_refused(tmp_path):
    made(tmp_path / "a", "crane/1.jpg")
    with pytest.raises(Error, match="'crane' is the name of 2 classes: 0 and 2"):
        sources.open(tmp_path / "a", 3, BIRDS)
    made(tmp_path / "b", "n00000002/1.jpg", "owl/1.jpg")
    with pytest.raises(Error, match=r"/owl: is class 1, as is .*/n00000002"):
        sources.open(tmp_path / "b", 3, BIRDS)
    with pytest.raises(Error, match="file or folder not found"):
        sources.open(tmp_path / "nowhere", 3, BIRDS)
    with pytest.raises(Error, match="1000 labels for a network of 3 classes"):
        sources.open(tmp_path, 3, imagenet())
    with pytest.raises(Error, match="3 labels for a network of 4 classes"):
        sources.open(tmp_path, 4, BIRDS)


def test_imagenets_two_cranes_are_told_apart_by_their_ids():
    resolve = resolver(1000, imagenet())
    assert resolve("n02012849") != resolve("n03126707")
    with pytest.raises(ValueError, match="the name of 2 classes"):
        resolve("crane")


def test_reading_says_what_is_wrong_with_a_file(tmp_path):
    (tmp_path / "short.tar").write_bytes(b"abc")
    for sample, message in (
        (Sample("gone.jpg", 0, str(tmp_path / "gone.jpg")), "gone.jpg: file or folder not found"),
        (Sample("part.jpg", 0, str(tmp_path / "short.tar"), 1, 5), "part.jpg: .*short.tar is truncated"),
        (
            Sample("huge.jpg", 0, str(tmp_path / "short.tar"), 0, MAX_BYTES + 1),
            "huge.jpg: is 256 MiB; the limit for images is 256 MiB",
        ),
    ):
        with pytest.raises(ImageError, match=message):
            sample.read()


def test_a_digest_knows_names_classes_and_sizes(tmp_path):
    made(tmp_path, "cat/a.jpg", "dog/b.jpg")
    first = sources.open(tmp_path, 3, PETS).digest()
    assert sources.open(tmp_path, 3, PETS).digest() == first
    (tmp_path / "cat/a.jpg").write_bytes(b"another")
    second = sources.open(tmp_path, 3, PETS).digest()
    (tmp_path / "cat/a.jpg").unlink()
    (tmp_path / "cat/z.jpg").write_bytes(b"another")
    assert len({first, second, sources.open(tmp_path, 3, PETS).digest()}) == 3


def test_a_shard_with_a_damaged_header_is_not_taken_for_a_shorter_one(tmp_path):
    content = bytearray(pack({f"{n}.{kind}": b"1" for n in range(3) for kind in ("jpg", "cls")}))
    content[2 * 1024 + 20] ^= 255
    (tmp_path / "0.tar").write_bytes(content)
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert len(tar.getnames()) == 2  # what tarfile alone makes of it
    with pytest.raises(Error, match="invalid header at byte 2,048"):
        sources.open(tmp_path, 3)


def test_classes_are_named_whatever_was_imported(tmp_path):
    import_module("vgg.sources.imagenet")
    count, labels = sources.classes_of(made(tmp_path, "n02123045/a.png", "unknown/a.png"))
    assert (count, labels.names) == (2, ("n02123045", "unknown"))
