import errno
import json
import os
from importlib import metadata

import numpy as np
import pytest

from conftest import change_version, needs_native, random_network
from vgg import Error, engines, store
from vgg.store import Work, differences, digest_of, key_of, refuse_other_work


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_state_is_restored_and_replaced():
    work = Work.cached("things", key_of(a=1))
    assert work.state() is None
    arrays = {"top": np.arange(6, dtype=np.int32).reshape(2, 3), "none": np.zeros(0, np.float16)}
    work.save({"done": 1}, {"old": np.ones(3)})
    work.save({"done": 2, "errors": {"3": "broken"}}, arrays)
    state, saved = Work.cached("things", key_of(a=1)).state()
    assert state == {"done": 2, "errors": {"3": "broken"}}
    assert saved.keys() == arrays.keys()
    assert all(np.array_equal(saved[name], arrays[name]) and saved[name].dtype == arrays[name].dtype for name in arrays)
    assert sorted(path.name for path in work.folder.iterdir()) == ["key.json", "state.npz"]
    assert json.loads((work.folder / "key.json").read_bytes()) == key_of(a=1)


def test_other_work_and_fresh_work_have_no_state():
    Work.cached("things", key_of(a=1)).save({}, {})
    assert Work.cached("things", key_of(a=2)).state() is None
    assert Work.cached("others", key_of(a=1)).state() is None
    assert Work.cached("things", key_of(a=1)).state() == ({}, {})
    assert Work.cached("things", key_of(a=1), fresh=True).state() is None
    assert Work.cached("things", key_of(a=1)).state() is None


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", None], ids=["empty", "short", "other", "cut"])
def test_a_damaged_state_counts_as_none(content):
    work = Work.cached("things", key_of(a=1))
    work.save({"done": 1}, {"a": np.ones(100)})
    path = work.folder / "state.npz"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    assert work.state() is None


def test_pickled_objects_are_not_loaded():
    work = Work.cached("things", key_of(a=1))
    work.save({}, {})
    np.savez(work.folder / "state.npz", state=np.array("{}"), a=np.array([{}], object))
    assert work.state() is None


def test_work_may_exist_if_the_known_entries_of_its_key_agree(home):
    assert not Work.may_exist("things", a=1)
    Work.cached("things", key_of(a=1, sizes=(256, 384), hash="x")).save({}, {})
    assert Work.may_exist("things")
    assert Work.may_exist("things", a=1, sizes=(256, 384))
    assert not Work.may_exist("things", a=2)
    assert not Work.may_exist("things", a=1, b=None)
    assert not Work.may_exist("others", a=1)
    for path in home.glob("things/*/key.json"):
        path.write_bytes(b"{")
    assert not Work.may_exist("things", a=1)


def test_an_array_is_zeros_first_and_kept():
    work = Work.cached("things", key_of(a=1))
    array = work.array("values", np.float16, (3, 4))
    assert (array.dtype, array.shape, array.any()) == (np.float16, (3, 4), False)
    array[1] = 5
    array.flush()
    assert (work.folder / "values.npy").stat().st_blocks * 512 >= 24  # reserved
    assert np.array_equal(Work.cached("things", key_of(a=1)).array("values", np.float16, (3, 4)), array)
    work.clear()
    assert not work.array("values", np.float16, (3, 4)).any()


def test_a_full_disk_is_an_error_and_leaves_no_array(monkeypatch):
    def full(path, start):
        raise OSError(errno.ENOSPC, "No space left on device")

    work = Work.cached("things", key_of(a=1))
    monkeypatch.setattr(store, "reserve", full)
    with pytest.raises(Error, match=r"values\.npy: can't be written: the disk is full"):
        work.array("values", np.float16, (3, 4))
    assert [path.name for path in work.folder.iterdir()] == ["key.json"]


@pytest.mark.skipif(os.name != "posix", reason="needs a path below a file")
def test_a_folder_that_can_not_be_created_is_an_error(home):
    home.write_text("a file")
    with pytest.raises(Error, match=r"things/.*: can't be created: "):
        Work.cached("things", key_of(a=1)).save({}, {})


def test_a_key_has_the_version_of_vgg(monkeypatch):
    key = key_of(a=(1, 2))
    assert key == {"vgg": metadata.version("vgg"), "a": [1, 2]}
    change_version(monkeypatch, "vgg")
    assert digest_of(key_of(a=(1, 2))) != digest_of(key)


@pytest.mark.parametrize("name", engines.installed())
def test_other_engines_versions_and_instruction_sets_are_other_work(monkeypatch, name):
    def digest(engine):
        return digest_of(key_of(engine=engines.identity(engine)))

    engine, others = engines.open(random_network(), name), [one for one in engines.installed() if one != name]
    before = digest(engine)
    assert digest(engine) == before
    assert all(digest(engines.open(random_network(), other)) != before for other in others)
    if name == "native":
        monkeypatch.setattr("vgg.engines.native_interface.build", lambda: "another build")
    else:
        change_version(monkeypatch, name)
    assert digest(engine) != before


@needs_native
def test_another_instruction_set_is_other_work(monkeypatch):
    from vgg.engines.native_interface import available_instructions

    engine, digests = engines.open(random_network(), "native"), set()
    names = [one for one in available_instructions() if one != "auto"]
    for one in names:
        monkeypatch.setenv("VGG_INSTRUCTIONS", one)
        digests.add(digest_of(key_of(engine=engines.identity(engine))))
    assert len(digests) == len(names) > 1


@pytest.mark.parametrize("name", engines.installed())
def test_the_identity_of_each_engine_has_an_instruction_set(name):
    identity = engines.identity(engines.open(random_network(), name))
    assert list(identity) == ["name", "precision", "version", "instructions"]
    assert all(identity.values())


def test_differences_name_each_entry():
    one, other = {"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "d": 2}, "e": 3}
    assert differences(one, other) == ["b.c: [1], not [2]", "e: None, not 3"]
    assert differences(one, one) == []


def test_a_folder_with_other_work_is_refused():
    refuse_other_work("run", {"lr": 1}, {"lr": 1})
    with pytest.raises(
        Error, match=r"run: holds other work \(lr: 1, not 2\); use --fresh to start over, or choose another folder"
    ):
        refuse_other_work("run", {"lr": 2}, {"lr": 1})
