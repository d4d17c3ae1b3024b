"""Pairs of NetDefs, encoded by protobuf from Caffe2's own description."""

import numpy as np
import pytest

from caffe_files import caffe2_nets
from conftest import random_network
from vgg import ModelError, Network


def save(folder, network, kind="net"):
    for name, net in zip(("init", "predict"), caffe2_nets(network), strict=True):
        (folder / f"{name}_{kind}.pb").write_bytes(net.SerializeToString())


@pytest.mark.parametrize("name", ["vgg11", "vgg11-lrn", "vgg16-c", "vgg19", "vgg13-bn"])
@pytest.mark.parametrize("given", ["init", "predict"])
def test_a_pair_of_files_is_read_by_either(tmp_path, name, given):
    network = random_network(name, input_size=64)
    save(tmp_path, network)
    again = Network.read(tmp_path / f"{given}_net.pb")
    assert (again.architecture.name, again.preprocessing.name) == (name, "caffe")
    for key, value in network.parameters.items():
        assert np.array_equal(again.parameters[key], value), key
    assert not again.parameters["fc6.weight"].flags.owndata  # though each number stands behind a byte of its own


def test_the_missing_half_is_named(tmp_path):
    save(tmp_path, random_network())
    (tmp_path / "predict_net.pb").unlink()
    with pytest.raises(ModelError, match=r"half of a Caffe2 network; put the other half, predict_net\.pb, beside it"):
        Network.read(tmp_path / "init_net.pb")


def test_numbers_of_no_network_are_refused(tmp_path):
    init, predict = caffe2_nets(random_network())
    init.op[0].type = "XavierFill"
    (tmp_path / "init_net.pb").write_bytes(init.SerializeToString())
    (tmp_path / "predict_net.pb").write_bytes(predict.SerializeToString())
    with pytest.raises(
        ModelError,
        match=r"unsupported operator XavierFill \(node 'conv1_1\.weight'\); parameters come from GivenTensorFill or Const",
    ):
        Network.read(tmp_path / "init_net.pb")
