import json

import pytest

from vgg import Error, Labels
from vgg.labels import imagenet


def test_imagenets_labels_are_in_the_order_that_published_networks_use(shared):
    ours = imagenet()
    lines = (shared / "labels" / "synset.txt").read_text().splitlines()
    assert list(ours.wnids) == [line.split()[0] for line in lines]
    assert list(ours.names) == [line.split(" ", 1)[1].split(",")[0] for line in lines]


def test_imagenets_labels_need_nothing_but_the_package():
    ours = imagenet()
    assert len(ours) == 1000
    assert (ours.names[285], ours.wnids[285]) == ("Egyptian cat", "n02124075")
    assert list(ours.wnids) == sorted(ours.wnids)


@pytest.mark.parametrize(
    ("text", "names", "wnids"),
    [
        ("cat\ndog, small\n", ("cat", "dog, small"), None),
        ("\ufeffcat\r\ndog\r\n\r\n", ("cat", "dog"), None),
        ("n02124075 Egyptian cat\nn02123045 tabby, tabby cat", ("Egyptian cat", "tabby"), ("n02124075", "n02123045")),
        (json.dumps(["cat", "dog"]), ("cat", "dog"), None),
        (json.dumps({"1": ["n2", "tiger_cat"], "0": ["n1", "tabby"]}), ("tabby", "tiger cat"), ("n1", "n2")),
    ],
)
def test_labels_are_read_in_the_usual_forms(tmp_path, text, names, wnids):
    path = tmp_path / "labels"
    path.write_bytes(text.encode())
    assert Labels.read(path) == Labels(names, wnids)


def test_labels_survive_as_text(tmp_path):
    path = tmp_path / "labels"
    for labels in (imagenet(), Labels(("a", "b c, d"))):
        path.write_text(labels.text())
        assert Labels.read(path) == labels


@pytest.mark.parametrize("content", [b"", b"\n\n", b"cat\n\ndog", b"[1, 2]", b"[]", b'{"0": 3}', b"{broken", b"\xff\xfe\x00"])
def test_a_bad_label_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(Error, match=r"labels\.txt: labels must be") as error:
        Labels.read(path)
    assert "\n" not in str(error.value)


def test_a_missing_label_file_is_named(tmp_path):
    with pytest.raises(Error, match=r"nowhere: file or folder not found"):
        Labels.read(tmp_path / "nowhere")
