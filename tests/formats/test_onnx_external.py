"""ONNX files with external data, beside them or behind the links of a download cache: every engine, the server, samples."""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from conftest import random_network
from heads_helpers import run_onnx
from vgg import ModelError, Network, engines, formats, load, samples
from vgg.evaluation.results import content_hash
from vgg.serving import Settings
from vgg.serving.repository import open_model

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter([{"data": IMAGES}])

    def get_next(self):
        return next(self._left, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a network and its quantized form, both with external data, and `cache`, whose files are links."""
    folder = tmp_path_factory.mktemp("external")
    random_network(input_size=64, head="average, 24 relu, classes", classes=5, width=1 / 16).write(
        folder / "whole.onnx", opset=13
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(folder / "whole.onnx", folder / "whole-q.onnx", Images(), per_channel=True)
    snapshot, blobs = folder / "models--me--vgg/snapshots/0123/onnx", folder / "models--me--vgg/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for source, name in (("whole.onnx", "n.onnx"), ("whole-q.onnx", "q.onnx")):
        model = onnx.load(folder / source)
        del model.metadata_props[:]
        onnx.save_model(model, folder / name, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        for one in (name, f"{name}.data"):  # as huggingface_hub lays them out
            content = (folder / one).read_bytes()
            blob = blobs / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / one).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "cache").symlink_to(snapshot)
    return folder


@pytest.mark.parametrize("place", ["", "cache"])
@pytest.mark.parametrize(("name", "engine"), [
    ("n", "native"), ("n", "onnxruntime"), ("q", "native"), ("q", "onnxruntime"), ("q", "openvino"),
])  # fmt: skip
def test_every_engine_reads_it(files, place, name, engine):
    path = files / place / f"{name}.onnx"
    found = engines.open(path, engine).logits(IMAGES)
    expected = run_onnx(path, IMAGES)
    assert np.abs(found - expected).max() <= (0.05 if name == "q" else 1e-4) * np.abs(expected).max()


@pytest.mark.parametrize("name", ["n", "q"])
def test_the_server_and_sample_data_take_it(files, tmp_path, name):
    path = files / "cache" / f"{name}.onnx"
    expected = run_onnx(path, IMAGES)
    served = open_model(path, Settings(), "n").engine.logits(IMAGES)
    assert np.abs(served - expected).max() <= 0.05 * np.abs(expected).max()
    samples.make(path, tmp_path / "s.tar.gz", sets=1)
    assert [one.passed for one in samples.check(tmp_path / "s.tar.gz", engine="onnxruntime")] == [True]


def test_other_external_data_is_another_model(files, tmp_path):
    for name in ("q.onnx", "q.onnx.data"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    before = content_hash(load(tmp_path / "q.onnx"))
    changed = bytearray((tmp_path / "q.onnx.data").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "q.onnx.data").write_bytes(changed)
    assert content_hash(load(tmp_path / "q.onnx")) != before


def test_a_link_to_another_folder_than_that_of_the_model_is_refused(files, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/data").write_bytes((files / "n.onnx.data").read_bytes())
    (tmp_path / "a").mkdir()
    (tmp_path / "a/n.onnx").write_bytes((files / "n.onnx").read_bytes())
    (tmp_path / "a/n.onnx.data").symlink_to(tmp_path / "secret/data")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/n.onnx").symlink_to(files / "n.onnx")  # a link to elsewhere
    (tmp_path / "b/n.onnx.data").symlink_to(tmp_path / "secret/data")
    for folder in "ab":
        with pytest.raises(ModelError, match=r"n\.onnx: its external data 'n\.onnx\.data' is outside its folder"):
            Network.read(tmp_path / folder / "n.onnx")
    (tmp_path / "b/n.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"its external data 'n\.onnx\.data' is missing; put that file beside it"):
        formats.companions(tmp_path / "b/n.onnx")
