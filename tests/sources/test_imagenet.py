import hashlib
import io
import json
import os
import tarfile
import threading

import pytest
from PIL import Image

import vgg.sources
from miniature import CLASSES, class_tar, jpeg, pack, train_tar, val_class, val_tar
from vgg import Error
from vgg.labels import imagenet as labels
from vgg.sources import imagenet, journal
from vgg.sources.check import check


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images(folder):
    return {name: content for name, content in files(folder).items() if not name.startswith(".")}


def prepare(to, train=None, val=None, **options):
    archives = {split: path for split, path in (("train", train), ("val", val)) if path}
    return imagenet.prepare(to, archives, verify=False, **options)


def test_the_validation_list_is_that_of_the_field(shared):
    lines = (shared / "labels/caffe_val.txt").read_text().split()
    assert tuple(map(int, lines[1::2])) == imagenet.validation_targets()


def test_every_image_lands_in_its_class_unchanged(tmp_path):
    assert prepare(tmp_path / "out", train_tar(tmp_path), val_tar(tmp_path)) == []
    expected = {f"train/{wnid}/{wnid}_{n}.JPEG": jpeg(n) for wnid in CLASSES for n in range(1, 5)}
    for number in range(1, 13):
        expected[f"val/{val_class(number)}/ILSVRC2012_val_{number:08d}.JPEG"] = jpeg(number - 1, 60, 50)
    assert images(tmp_path / "out") == expected


def test_smaller_images_are_what_pillow_makes_of_them(tmp_path):
    prepare(tmp_path / "out", val=val_tar(tmp_path), short_side=25)
    for name, content in images(tmp_path / "out").items():
        original = Image.open(io.BytesIO(jpeg(int(name[-13:-5]) - 1, 60, 50)))
        smaller = io.BytesIO()
        original.resize((30, 25), Image.Resampling.BILINEAR).save(smaller, "JPEG", quality=95)
        assert content == smaller.getvalue()
    prepare(tmp_path / "small", train_tar(tmp_path), short_side=30)
    assert images(tmp_path / "small")[f"train/{CLASSES[0]}/{CLASSES[0]}_1.JPEG"] == jpeg(1)  # small enough already


def test_shards_hold_the_same_images_mixed_and_are_read_as_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "SHARD", 5)
    archive = train_tar(tmp_path)
    assert prepare(tmp_path / "out", archive, as_shards=True) == []
    again = files(tmp_path / "out")
    assert prepare(tmp_path / "again", archive, as_shards=True) == []
    assert files(tmp_path / "again") == again
    shards = sorted((tmp_path / "out/train").iterdir())
    assert [path.name for path in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    dataset = vgg.sources.open(tmp_path / "out/train", 1000, labels())
    found = {sample.name.split("/")[1]: (sample.read(), labels().wnids[sample.target]) for sample in dataset}
    assert found == {f"{wnid}_{n}.jpg": (jpeg(n), wnid) for wnid in CLASSES for n in range(1, 5)}
    assert len({sample.target for sample in list(dataset)[:5]}) > 1


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_shards_are_what_webdataset_reads(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    prepare(tmp_path / "out", val=val_tar(tmp_path), as_shards=True)
    url = str(tmp_path / "out/val/000000.tar")
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(url, shardshuffle=False)}
    assert len(found) == 12
    for number in range(1, 13):
        sample = found[f"ILSVRC2012_val_{number:08d}"]
        assert sample["jpg"] == jpeg(number - 1, 60, 50)
        assert labels().wnids[int(sample["cls"])] == val_class(number)


def test_finished_classes_are_kept_and_partial_ones_are_written_again(tmp_path):
    archive, out = train_tar(tmp_path), tmp_path / "out"
    prepare(out, archive)
    whole = images(out)
    finished = out / "train" / CLASSES[1]
    (finished / "mark").write_text("kept")
    (out / "train" / CLASSES[0]).rename(out / "train" / f".{CLASSES[0]}.part")
    next((out / "train" / f".{CLASSES[0]}.part").iterdir()).unlink()
    prepare(out, archive)
    assert (finished / "mark").read_text() == "kept"
    (finished / "mark").unlink()
    assert images(out) == whole


def test_an_interrupted_run_leaves_complete_classes_only(tmp_path):
    archive, out = train_tar(tmp_path), tmp_path / "out"

    def stop(*progress):
        raise KeyboardInterrupt

    before = {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        prepare(out, archive, workers=1, progress=stop)
    for thread in {*threading.enumerate()} - before:
        thread.join()
    made = [path for path in (out / "train").iterdir() if not path.name.startswith(".")]
    assert made
    assert all(len(list(path.iterdir())) == 4 for path in made)
    prepare(out, archive)
    assert len(images(out)) == 12


def test_other_options_than_before_are_refused_until_fresh(tmp_path):
    archive, out = val_tar(tmp_path), tmp_path / "out"
    prepare(out, val=archive, short_side=25)
    with pytest.raises(Error, match=r"out: holds other work \(short_side: 25, not None\); use --fresh to start over"):
        prepare(out, val=archive)
    with pytest.raises(Error, match=r"out: holds other work \(shards: False, not True\)"):
        prepare(out, val=archive, short_side=25, as_shards=True)
    (out / "notes.txt").write_text("kept")
    assert prepare(out, train_tar(tmp_path), as_shards=True, fresh=True) == []
    assert sorted(images(out)) == ["notes.txt", "train/000000.tar"]
    assert prepare(tmp_path / "new", val=archive, fresh=True) == []


def test_fresh_deletes_what_its_archives_replace(tmp_path):
    archive, train, out = val_tar(tmp_path), train_tar(tmp_path), tmp_path / "out"
    prepare(out, train, archive)
    for split in ("train", "val"):
        (next((out / split).iterdir()) / "mark").write_text("old")
    whole = images(out)
    with pytest.raises(Error, match="file or folder not found"):
        prepare(out, val=tmp_path / "typo.tar", fresh=True)
    with pytest.raises(Error, match="is damaged, or not the published archive"):
        imagenet.prepare(out, {"val": archive}, fresh=True)
    assert images(out) == whole
    prepare(out, val=archive, fresh=True)
    assert [name.split("/")[0] for name in set(whole) - set(images(out))] == ["val"]


def test_files_of_other_programs_are_not_taken_for_finished_classes(tmp_path):
    archive, out = val_tar(tmp_path), tmp_path / "out"
    (out / "val" / CLASSES[0]).mkdir(parents=True)
    for fresh in (False, True):
        with pytest.raises(Error, match=r"out/val: has files that `vgg prepare` did not make; choose another output folder"):
            prepare(out, val=archive, fresh=fresh)
    prepare(out, train_tar(tmp_path))
    with pytest.raises(Error, match=r"out/val: has files"):
        prepare(out, val=archive)


def test_images_of_an_archive_that_cannot_be_read_are_not_skipped(tmp_path):
    archive, out = val_tar(tmp_path), tmp_path / "out"
    content = archive.read_bytes()
    problems = prepare(out, val=archive, workers=1, progress=lambda *done: os.truncate(archive, 1000))
    assert problems
    assert all(problem.endswith("; class skipped") for problem in problems)
    archive.write_bytes(content)
    assert prepare(out, val=archive) == []
    assert len(images(out)) == 12


def test_only_the_published_archives_are_taken_and_hashed_once(tmp_path, monkeypatch):
    archive = val_tar(tmp_path)
    with pytest.raises(Error, match=r"is damaged, or not the published archive: its SHA1 is \w{40}, published is 5f3f73da"):
        imagenet.prepare(tmp_path / "out", {"val": archive})
    assert images(tmp_path / "out") == {}
    monkeypatch.setitem(imagenet.SHA1, "val", hashlib.sha1(archive.read_bytes()).hexdigest())
    seen = []
    for _ in range(2):
        imagenet.prepare(
            tmp_path / "out", {"val": archive}, progress=lambda task, done, total, unit="": seen.append((task, unit))
        )
    assert seen.count(("Verifying ILSVRC2012_img_val.tar", "bytes")) == 1
    assert len(images(tmp_path / "out")) == 12


def evil(kind, name="n01440764_9.JPEG", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


GOOD = ("n01440764_1.JPEG", jpeg(1))
HOSTILE = {
    "a path up": pack([GOOD, ("../../evil.JPEG", b"x")]),
    "an absolute path": pack([GOOD, ("/tmp/vgg-evil.JPEG", b"x")]),
    "a symbolic link": pack([GOOD, (evil(tarfile.SYMTYPE, link="/etc/passwd"), b"")]),
    "a hard link": pack([GOOD, (evil(tarfile.LNKTYPE, link="/etc/passwd"), b"")]),
    "a device": pack([GOOD, (evil(tarfile.CHRTYPE), b"")]),
    "a folder": pack([GOOD, (evil(tarfile.DIRTYPE), b"")]),
    "another class's image": pack([GOOD, ("n01443537_1.JPEG", jpeg(2))]),
    "the same image twice": pack([GOOD, GOOD]),
    "no tar file": b"not a tar file at all" * 100,
    "nothing": b"",
    "an end before its end": class_tar("n01440764")[:-11000],
    "a damaged header": class_tar("n01440764")[:2048].replace(b"ustar", b"rusta") + class_tar("n01440764")[2048:].replace(
        b"n01440764_3", b"n0144\xff764_3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("as_shards", [False, True])
def test_a_class_with_anything_odd_in_it_is_refused_whole_and_the_others_are_made(tmp_path, kind, as_shards):
    archive = train_tar(tmp_path, n01440764=HOSTILE[kind])
    problems = prepare(tmp_path / "out", archive, as_shards=as_shards)
    assert len(problems) == 1
    assert problems[0].startswith("train/n01440764: ")
    assert "\n" not in problems[0]
    assert not any("n01440764" in name for name in files(tmp_path / "out"))
    assert not (tmp_path / "evil.JPEG").exists()
    if not as_shards:
        assert len(images(tmp_path / "out")) == 8
        assert not list((tmp_path / "out").rglob("*.part"))


def test_unexpected_members_of_an_archive_are_skipped_and_reported(tmp_path):
    link = tarfile.TarInfo("ILSVRC2012_val_00000005.JPEG")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [("ILSVRC2012_val_00000001.JPEG", jpeg(1)), ("../up.JPEG", b"x"), (link, b"")]
    archive = tmp_path / "val.tar"
    archive.write_bytes(pack([*members, ("ILSVRC2012_val_00050001.JPEG", jpeg(1)), members[0]]))
    problems = prepare(tmp_path / "out", val=archive)
    assert len(problems) == 4
    assert all("unexpected or repeated member" in problem for problem in problems)
    assert list(images(tmp_path / "out")) == [f"val/{val_class(1)}/ILSVRC2012_val_00000001.JPEG"]


def test_a_truncated_archive_is_refused(tmp_path):
    archive = train_tar(tmp_path)
    os.truncate(archive, archive.stat().st_size - 20_000)
    with pytest.raises(Error, match=r"img_train\.tar: is damaged, truncated, or not a tar file"):
        prepare(tmp_path / "out", archive)
    with pytest.raises(Error, match="file or folder not found"):
        prepare(tmp_path / "out", tmp_path / "nothing.tar")


def test_a_broken_image_is_skipped_if_it_must_be_decoded(tmp_path):
    broken = {"ILSVRC2012_val_00000003.JPEG": jpeg(3)[:-200]}
    archive = val_tar(tmp_path, **broken)
    [problem] = prepare(tmp_path / "out", val=archive, short_side=25)
    assert "ILSVRC2012_val_00000003.JPEG: is damaged or truncated" in problem
    assert len(images(tmp_path / "out")) == 11
    assert prepare(tmp_path / "whole", val=archive) == []


def test_check_finds_what_is_missing_broken_or_misplaced(tmp_path):
    out = tmp_path / "out"
    prepare(out, train_tar(tmp_path), val_tar(tmp_path))
    places = {n: out / "val" / val_class(n) / f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 13)}
    places[1].write_bytes(places[1].read_bytes()[:-100])
    places[2].rename(out / "val" / val_class(3) / places[2].name)
    (out / "train/n00000000").mkdir()
    (out / "train" / CLASSES[0] / "notes.txt").write_text("hello")
    counts, problems = check(out)
    assert counts == {"train": 13, "val": 12}
    found = {one.path: one.problem for one in problems}
    assert "damaged or truncated" in found[f"val/{val_class(1)}/{places[1].name}"]
    assert found[f"val/{val_class(3)}/{places[2].name}"] == f"belongs to {val_class(2)}"
    assert found["train/n00000000"] == "is not a class of ImageNet"
    assert f"train/{CLASSES[0]}/notes.txt" in found
    assert found["train"] == "has 13 images; the published archive has 1,281,167"
    assert sum(problem == "is missing" for problem in found.values()) == 997
    assert sum(problem.startswith("lacks ILSVRC2012_val_") for problem in found.values()) == 1000


def test_check_reads_shards_and_finds_broken_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "SHARD", 5)
    out = tmp_path / "out"
    prepare(out, val=val_tar(tmp_path), as_shards=True)
    counts, problems = check(out)
    assert counts == {"val": 12}
    assert len(problems) == 1000
    os.truncate(out / "val/000001.tar", 3000)
    counts, problems = check(out)
    assert counts == {"val": 7}
    assert any(one.path == "val/000001.tar" and "truncated" in one.problem for one in problems)
    with pytest.raises(Error, match="has neither train nor val in it"):
        check(tmp_path / "nowhere")


def test_the_journal_survives_damage(tmp_path):
    archive = val_tar(tmp_path)
    prepare(tmp_path / "out", val=archive)
    (tmp_path / "out" / journal.NAME).write_text("{")
    assert prepare(tmp_path / "out", val=archive) == []
    assert json.loads((tmp_path / "out" / journal.NAME).read_text())["options"] == {"short_side": None, "shards": False}
