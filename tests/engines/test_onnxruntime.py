import threading

import numpy as np
import pytest

from conftest import random_network
from vgg import Error, ModelError, engines


def images(count=2, size=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)


def test_named_values_come_in_any_combination():
    engine = engines.open(random_network("vgg16-bn"))
    found = engine.run(images(), ("fc7", "logits", "conv5_3", "bn1_1"))
    assert {name: value.shape for name, value in found.items()} == {
        "fc7": (2, 256), "logits": (2, 7), "conv5_3": (2, 32, 2, 2), "bn1_1": (2, 4, 32, 32),
    }  # fmt: skip
    assert found["fc7"].min() == 0  # after the ReLU
    np.testing.assert_allclose(found["logits"], engine.logits(images()), rtol=1e-5, atol=1e-6)


def test_the_gap_head_takes_any_size():
    engine = engines.open(random_network(head="gap"))
    for size in (32, 64, 100):
        assert engine.logits(images(1, size)).shape == (1, 7)


@pytest.mark.parametrize("batch", [images()[0], images(size=64), images().astype(np.float64), images()[:, :1], images(size=16)])
def test_what_a_network_does_not_take_is_refused(batch):
    with pytest.raises(ModelError, match=r"vgg11 takes float32 \[batch, 3, 32, 32\], not "):
        engines.open(random_network()).logits(batch)


def test_an_unknown_output_engine_or_number_of_threads_is_said():
    network = random_network()
    with pytest.raises(ModelError, match="no value of vgg11 is called 'fc9'"):
        engines.open(network).run(images(), ["fc9"])
    with pytest.raises(Error, match="no engine is called 'abacus'"):
        engines.open(network, "abacus")
    with pytest.raises(Error, match="threads must be 1 or more"):
        engines.open(network, threads=0)


def test_several_threads_share_an_engine():
    engine = engines.open(random_network(), threads=1)
    batches = [images(seed=seed) for seed in range(8)]
    expected = [engine.logits(batch) for batch in batches]
    found: dict[int, np.ndarray] = {}

    def work(index):
        found[index] = engine.run(batches[index], ("fc6", "logits"))["logits"]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, logits in enumerate(expected):
        np.testing.assert_allclose(found[index], logits, rtol=1e-5, atol=1e-6)
