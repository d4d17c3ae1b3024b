import json
from itertools import pairwise

import pytest

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


def test_a_class_with_the_name_of_an_entry_is_a_class(tmp_path):
    (tmp_path / "a.json").write_text('{"names": 1, "classes": 0}')
    assert Labels.read(tmp_path / "a.json").names == ("classes", "names")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"0": "cat", "2": "dog"}', "2 classes, of which 1 is missing"),
        ("a.json", '{"cat": 0, "dog": 0}', "there is no list or mapping of names"),
        ("a.json", '["cat", ""]', "'' is no name"),
        ("a.csv", "1,cat\n2,dog\n", "2 classes, of which 0 is missing"),
        ("a.csv", "0,cat\n0,dog\n", "an index is repeated"),
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
