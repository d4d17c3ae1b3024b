import json
from itertools import pairwise

import pytest

import vgg
from conftest import random_network
from vgg import Error, Labels, Network
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


NAMES = ("cat", "big dog")


@pytest.mark.parametrize(
    ("name", "text", "wnids"),
    [
        ("a.json", '{"0": "cat", "1": "big dog"}', None),
        ("a.json", '{"big dog": 1, "cat": 0}', None),  # Keras's class_indices
        ("config.json", '{"hidden_size": 8, "id2label": {"1": "big dog", "0": "cat"}, "label2id": {}}', None),
        ("index_to_name.json", '{"0": ["n00000001", "cat"], "1": ["n00000002", "big_dog"]}', ("n00000001", "n00000002")),
        ("a.json", '["cat", "big\\n dog "]', None),  # a name is one line
        ("a.csv", "cat\nbig dog\n", None),
        ("a.csv", 'label\ncat\n"big dog"\n', None),
        ("a.csv", "1,big dog\r\n0,cat\r\n", None),
        ("a.csv", "name,index\ncat,0\nbig dog,1\n", None),
        ("a.csv", "index,class,remark\n0,cat,x\n1,big dog,y\n", None),
        ("a.csv", "id,wnid,name\n0,n00000001,cat\n1,n00000002,big dog\n", ("n00000001", "n00000002")),
        ("a.tsv", "0\tcat\n1\tbig dog\n", None),
        ("a.txt", "0 cat\n1 big dog\n", None),  # Teachable Machine
        ("a.txt", "1: big dog\n0: cat\n", None),
        ("a.txt", "0\tcat\r\n1\tbig dog\r\n\r\n", None),
        ("a.txt", "cat 0\nbig dog 1\n", None),  # Places365
        ("a.txt", "n00000002 1 big_dog\nn00000001 0 cat\n", ("n00000001", "n00000002")),
        ("a.txt", "{0: 'cat',\n 1: 'big dog'}", None),  # as Python prints it
        ("config.json", '{"label2id": {"big dog": 1, "cat": 0}, "model_type": "vgg"}', None),
        ("a.json", '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "big dog"}]}', None),
        ("a.json", '[{"index": 1, "label": "big dog"}, {"index": 0, "label": "cat"}]', None),
        ("a.csv", "ClassId,SignName\n0,cat\n1,big dog\n", None),  # GTSRB
        ("a.csv", "0;cat\r\n1;big dog\r\n", None),
        ("a.yaml", "names:\n  0: cat\n  1: big dog\n", None),  # Ultralytics
        ("a.yaml", "- cat\n- big dog\n", None),
        ("a.yml", "0: cat\n1: big dog\n", None),
        ("data.yaml", "train: images\nnc: 2\nnames: [cat, big dog]\n", None),
    ],
)
def test_labels_are_read_as_other_programs_write_them(tmp_path, name, text, wnids):
    path = tmp_path / name
    path.write_text(text)
    assert Labels.read(path) == Labels(NAMES, wnids)
    (tmp_path / "again.txt").write_text(Labels.read(path).text())
    assert Labels.read(tmp_path / "again.txt") == Labels(NAMES, wnids)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.csv"])
def test_labels_are_read_as_windows_writes_them(tmp_path, name, encoding):
    text = json.dumps(["Käfer", "Bär"]) if name == "a.json" else "Käfer\r\nBär\r\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert Labels.read(tmp_path / name).names == ("Käfer", "Bär")


@pytest.mark.parametrize(
    "names",
    [("2012 Audi A4", "1990 Fiat"), ("class 0", "class 1"), ("7 up", "3 dots"), ("a", "a"), ("boeing 747", "a 1")],
)
def test_names_may_contain_numbers_and_repeat(tmp_path, names):
    (tmp_path / "a.txt").write_text("\n".join(names))
    assert Labels.read(tmp_path / "a.txt").names == names


@pytest.mark.parametrize("names", [("0 a", "1 b"), ("1 euro", "2 euro")])
def test_a_written_file_keeps_names_that_look_like_indices(tmp_path, names):
    random_network(classes=2, labels=Labels(names)).write(tmp_path / "n.safetensors")
    assert Network.read(tmp_path / "n.safetensors").labels == Labels(names)


def test_labels_of_another_number_are_refused_with_both_numbers_and_the_file(tmp_path):
    def named(*names):
        (tmp_path / "a.txt").write_text("\n".join(names))
        return {"labels": tmp_path / "a.txt"}

    seven = [f"animal {letter}" for letter in "abcdefg"]
    with pytest.raises(Error, match=r"a\.txt: 6 labels for a network of 7 classes$"):
        vgg.load(random_network(), **named(*seven[1:]))
    with pytest.raises(Error, match=r"8 labels for a network of 7 classes; the first, 'background', is a .*; remove it"):
        vgg.load(random_network(), **named("background", *seven))
    with pytest.raises(Error, match=r"1000 labels for a network of 1001 classes; if its first class is .*add a"):
        vgg.load(random_network(classes=1001), **named(*imagenet().names))


def test_a_class_with_the_name_of_an_entry_is_a_class(tmp_path):
    (tmp_path / "a.json").write_text('{"names": 1, "classes": 0}')
    assert Labels.read(tmp_path / "a.json").names == ("classes", "names")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"0": "cat", "2": "dog"}', "2 classes, of which 1 is missing; 2 is too large"),
        ("a.json", '{"cat": 0, "dog": 0}', "index 0 is repeated: 'cat' and 'dog'"),
        ("a.json", '{"cat": 1, "dog": 2}', "the indices are 1 to 2; classes are numbered from 0; subtract 1, or leave out"),
        ("a.json", '{"cat": 0, "dog": -1}', "-1 is no index"),
        ("a.json", '{"a": "cat", "b": "dog"}', "'a' is no index"),
        ("a.txt", "1: cat\n2: dog\n", "the indices are 1 to 2; classes are numbered from 0"),
        ("a.txt", "0: cat\n0: dog\n", "index 0 is repeated"),
        ("a.txt", "0: cat\n5: dog\n", "2 classes, of which 1 is missing; 5 is too large"),
        ("a.txt", "n02119789 1 kit_fox\nn02100735 2 English_setter", "the indices are 1 to 2"),
        ("a.txt", "cat\n\ndog\n", "a class without a name in line 2"),
        ("a.json", '[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]', "the indices are 1 to 2"),
        ("a.json", '["cat", ""]', "'' is no name"),
        ("a.csv", "1,cat\n2,dog\n", "the indices are 1 to 2; classes are numbered from 0"),
        ("a.csv", "0,cat\n0,dog\n", "index 0 is repeated"),
        ("a.csv", "0,cat,small\n1,dog,big\n", "must have a column of names"),
        ("a.csv", "0,cat\n1\n", "the same number of cells"),
        ("a.yaml", "[yes, no]", "True is no name"),
        ("a.yaml", "{a: [", "while parsing"),
        ("a.yaml", "!!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
    ],
)
def test_labels_that_are_incomplete_or_ambiguous_are_refused(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(Error, match=f"{name}: labels must be .*{message}"):
        Labels.read(name)
    assert not (tmp_path / "canary").exists()


def test_without_its_package_yaml_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("vgg.extras.find_spec", lambda name: None)
    (tmp_path / "a.yaml").write_text("- cat")
    with pytest.raises(Error, match=r"labels in YAML requires yaml; install with `pip install 'vgg\[yaml\]'`"):
        Labels.read(tmp_path / "a.yaml")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [("version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"), ("<!DOCTYPE html>\n<html>", "is a web page")],
)
def test_what_was_saved_in_place_of_labels_is_named(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(Error, match=rf"a\.txt: {message}"):
        Labels.read(tmp_path / "a.txt")


def test_a_missing_label_file_is_named(tmp_path):
    with pytest.raises(Error, match=r"nowhere: file or folder not found"):
        Labels.read(tmp_path / "nowhere")


@pytest.mark.parametrize(("units", "known"), [([4096, 4096], True), ([256], False), ([], False)])
def test_imagenets_labels_are_only_those_of_the_published_form(tmp_path, units, known):
    torch = pytest.importorskip("torch")
    layers, before, state = (4, 0, 4, 0, 4, 4, 0, 4, 4, 0, 4, 4, 0), 3, {}
    place = 0
    for out in layers:
        if out:
            state |= {f"features.{place}.weight": torch.randn(out, before, 3, 3), f"features.{place}.bias": torch.randn(out)}
            before = out
        place += 2 if out else 1
    sizes = [4 * 7 * 7, *units, 1000]
    for number, (inputs, out) in enumerate(pairwise(sizes)):
        state |= {
            f"classifier.{3 * number}.weight": torch.randn(out, inputs),
            f"classifier.{3 * number}.bias": torch.randn(out),
        }
    torch.save(state, tmp_path / "n.pth")
    assert (Network.read(tmp_path / "n.pth").labels is not None) == known
