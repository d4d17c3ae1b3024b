"""Tables of images with their classes, one or several."""

import json

import pytest

from vgg import Error, Labels, sources

LABELS = Labels(("ant", "big bee", "cat"))
WANTED = {"a.jpg": (2,), "sub/b c.png": (0, 1), "d.jpg": ()}


def opened(tmp_path, name, text, several=True):
    (tmp_path / name).write_text(text)
    return sources.open(tmp_path / name, 3, LABELS, several=several)


OBJECTS = [{"image": image, "labels": [LABELS.names[one] for one in found]} for image, found in WANTED.items()]
HEADINGLESS = "a.jpg,cat\nsub/b c.png,ant,big bee\nd.jpg,\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,labels\na.jpg,cat\nsub/b c.png,ant|big bee\nd.jpg,\n"),
        ("a.csv", '\ufefflabels,file_name\ncat,a.jpg\r\n"ant, big bee",sub/b c.png\r\n,d.jpg\r\n'),
        ("a.csv", "image_name,tags,split\na.jpg,2,x\nsub/b c.png,1 0,x\nd.jpg,,x\n"),
        ("a.csv", "image,ant,big bee,cat\na.jpg,0,0,1\nsub/b c.png,1,1,0\nd.jpg,0,0,0\n"),
        ("a.csv", "cat,filename,big bee,ant\n1.0,a.jpg,0.0,0\n0,sub/b c.png,1,1\n0,d.jpg,0,0\n"),
        ("a.csv", HEADINGLESS),
        ("a.tsv", "image\t0\t1\t2\na.jpg\t0\t0\t1\nsub/b c.png\t1\t1\t0\nd.jpg\t0\t0\t0\n"),
        ("a.tsv", "a.jpg\tcat\nsub/b c.png\tant; big bee\nd.jpg\t\n"),
        ("a.jsonl", "\n".join(map(json.dumps, OBJECTS))),
        (
            "a.jsonl",
            '{"file_name": "a.jpg", "label": 2}\n\n{"path": "sub/b c.png", "tags": [1, 0]}\n{"image": "d.jpg", "labels": []}',
        ),
        ("a.txt", "a.jpg\tcat\nsub/b c.png\tant,big bee\nd.jpg\t\n"),
    ],
)
def test_several_classes_of_an_image_are_read(tmp_path, name, text):
    dataset = opened(tmp_path, name, text)
    assert {one.name: one.classes for one in dataset} == WANTED
    assert dataset.samples[0].path == str(tmp_path / "a.jpg")


def test_tables_have_one_class_for_networks_with_one(tmp_path):
    dataset = opened(tmp_path, "a.csv", "image,label\na.jpg,cat\nb.jpg,big bee\n", several=False)
    assert [(one.name, one.target, one.classes) for one in dataset] == [("a.jpg", 2, (2,)), ("b.jpg", 1, (1,))]
    marked = opened(tmp_path, "b.csv", "image,ant,cat\na.jpg,0,1\n", several=False)
    assert [one.target for one in marked] == [2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,label,group\na.jpg,cat,p1\nb.jpg,ant,p1\nc.jpg,cat,\n"),
        ("a.csv", "patient_id,image,diagnosis\np1,a.jpg,cat\np1,b.jpg,ant\n,c.jpg,cat\n"),
        ("a.tsv", "Patient\timage\tclass\np1\ta.jpg\tcat\np1\tb.jpg\tant\n\tc.jpg\tcat\n"),
        ("a.csv", "image,ant,patient_id,cat\na.jpg,0,p1,1\nb.jpg,1,p1,0\nc.jpg,0,,1\n"),
        (
            "a.jsonl",
            '{"image": "a.jpg", "label": 2, "group_id": "p1"}\n{"image": "b.jpg", "label": 0, "patient": "p1"}\n'
            '{"image": "c.jpg", "label": 2}',
        ),
    ],
)
def test_images_have_the_groups_of_a_table(tmp_path, name, text):
    dataset = opened(tmp_path, name, text, several=False)
    assert [(one.name, one.target, one.group) for one in dataset] == [
        ("a.jpg", 2, "p1"), ("b.jpg", 0, "p1"), ("c.jpg", 2, None),
    ]  # fmt: skip
    without = opened(tmp_path, "b.csv", "image,label\na.jpg,cat\nb.jpg,ant\nc.jpg,cat\n", several=False)
    assert dataset.digest() != without.digest()


def test_a_column_named_group_may_be_a_class(tmp_path):
    (tmp_path / "tags.csv").write_text("image,group,person\na.jpg,1,0\nb.jpg,0,1\n")
    assert sources.classes_of(tmp_path / "tags.csv", several=True)[1] == Labels(("group", "person"))


def test_other_classes_are_another_dataset(tmp_path):
    digests = {
        opened(tmp_path, "a.csv", f"image,labels\na.jpg,{classes}\n").digest() for classes in ("cat", "ant|cat", "", "ant")
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("name", "text", "message", "several"),
    [
        ("a.csv", "image,labels\na.jpg,cat|dog\n", "line 2: unknown class 'dog'", True),
        ("a.csv", "image,labels\na.jpg,cat|cat\n", "line 2: a class is repeated: cat, cat", True),
        ("a.csv", "image,labels\na.jpg,cat\na.jpg,ant|cat\n", r"line 3: a.jpg is already in the list, as class 2", True),
        ("a.csv", "image,ant,cat\na.jpg,0,2\n", "line 2: '2' in the column 'cat'; a column of a class holds 0 or 1", True),
        ("a.csv", "image,ant,cat\na.jpg,0\n", "line 2: has 2 cells; the heading has 3", True),
        ("a.csv", "image,dog,cat\na.jpg,1,0\n", "line 2: unknown class 'dog'", True),
        ("a.jsonl", '{"image": "a.jpg"}', "line 1: must be an object such as", True),
        ("a.jsonl", "[" * 100_000, "line 1: is not JSON", True),
        ("a.jsonl", "{", "line 1: is not JSON", True),
        ("a.csv", "image,labels\na.jpg,cat|ant\n", "line 2: unknown class 'cat|ant'", False),
        ("a.csv", "image,ant,cat\na.jpg,1,1\n", "line 2: has 2 classes; only a network with the output `sigmoid`", False),
        ("a.csv", "image,ant,cat\na.jpg,0,0\n", "line 2: has no class", False),
    ],
)
def test_a_table_that_is_unclear_is_refused_by_its_line(tmp_path, name, text, message, several):
    with pytest.raises(Error, match=message.replace("|", r"\|")) as error:
        opened(tmp_path, name, text, several)
    assert str(error.value).startswith(f"{tmp_path / name}, line")
    assert "\n" not in str(error.value)
