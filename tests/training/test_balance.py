"""Classes with different numbers of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from training_helpers import QUICK, class_folders, options
from vgg import Error, Network
from vgg.progress import silent
from vgg.training import train
from vgg.training.balance import loss_weights, probabilities
from vgg.training.loop import Trainer
from vgg.training.processes import Process
from vgg.training.setup import prepare
from vgg.training.targets import by_class, loss

TARGETS = [0] * 6 + [1] * 2 + [2] * 4


def unequal(folder):
    """48 images of class0, 12 of class1, 6 of class2."""
    data = class_folders(folder, each=48)
    for index, count in ((1, 12), (2, 6)):
        for number in range(count, 48):
            (data / f"class{index}/{number}.png").unlink()
    return data


def trainer_of(data, output, recipe, **others):
    made = options(data, output, recipe, **others)
    return Trainer(made, prepare(made, lambda line: None), Process(torch.device("cpu"), 0, 1), silent, lambda line: None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("output", ["softmax", "binary"])
def test_with_weights_each_class_has_the_same_part_of_the_loss(output, smoothing):
    targets = torch.tensor(TARGETS) if output == "softmax" else (torch.tensor(TARGETS) == 1).long()
    classes = 3 if output == "softmax" else 2
    weights = loss_weights([(one,) for one in targets.tolist()], classes, output)
    assert weights.dtype == np.float32
    assert weights[targets].mean() == pytest.approx(1)
    logits = torch.randn(12, classes if output == "softmax" else 1, generator=torch.Generator().manual_seed(0))
    wanted = functional.one_hot(targets, classes).float()
    found = loss(logits, wanted, output, smoothing, torch.from_numpy(weights))
    each = functional.cross_entropy(by_class(logits, output), targets, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(found, torch.stack([each[targets == one].mean() for one in range(classes)]).mean())
    assert not torch.allclose(found, loss(logits, wanted, output, smoothing))
    same = loss(logits, wanted, output, smoothing, torch.ones(classes))
    torch.testing.assert_close(same, loss(logits, wanted, output, smoothing))


def test_with_several_labels_images_with_and_without_a_class_have_the_same_part():
    truth = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0]]).bool()
    weights = loss_weights([(0,), (0,), (0,), (1,), (0,)], 2, "sigmoid")
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    found = loss(logits, truth.float(), "sigmoid", 0.0, torch.from_numpy(weights))
    each = functional.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    parts = [each[truth[:, one] == mark, one].mean() for one in range(2) for mark in (True, False)]
    torch.testing.assert_close(found, torch.stack(parts).mean())
    every = loss_weights([(0,), (0, 1)], 2, "sigmoid")  # a class that all images have
    assert np.isfinite(every).all()


def test_sampling_makes_classes_equally_frequent_and_is_a_function_of_seed_and_epoch(tmp_path):
    chances = probabilities([(one,) for one in TARGETS], 3)
    assert [chances[np.array(TARGETS) == one].sum() for one in range(3)] == pytest.approx([1 / 3] * 3)
    data = unequal(tmp_path / "data")
    trainer = trainer_of(data, tmp_path / "run", replace(QUICK, balance="sampling"))
    classes = np.array([one.target for one in trainer.setup.train.dataset])

    def drawn(trainer, epoch, step=0):
        trainer.epoch, trainer.step = epoch, step
        return np.concatenate([batch.indices for batch in trainer.batches()])

    counts = sum(np.bincount(classes[drawn(trainer, epoch)], minlength=3) for epoch in range(40))
    assert np.abs(counts / counts.sum() - 1 / 3).max() < 0.04
    assert set(drawn(trainer, 0).tolist()) <= set(trainer.setup.indices.tolist())
    again = trainer_of(data, tmp_path / "run", replace(QUICK, balance="sampling"))
    np.testing.assert_array_equal(drawn(again, 3), drawn(trainer, 3))
    np.testing.assert_array_equal(drawn(again, 3, step=4), drawn(trainer, 3)[4 * QUICK.batch :])
    assert not np.array_equal(drawn(again, 3), drawn(again, 4))
    other = trainer_of(data, tmp_path / "run", replace(QUICK, balance="sampling"), seed=1)
    assert not np.array_equal(drawn(other, 3), drawn(again, 3))


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_a_rare_class_is_learnt(balance, tmp_path):
    data = unequal(tmp_path / "data")
    recipe = replace(QUICK, epochs=4, balance=balance, best="balanced", mixup=0.1, smoothing=0.1)
    outcome = train(options(data, tmp_path / "run", recipe, arch="vgg11-bn"))
    assert max(row["val_balanced"] for row in outcome.history) == 100
    with pytest.raises(Error, match=f"recipe.balance: {balance}, not none"):
        train(options(data, tmp_path / "run", replace(recipe, balance="none"), arch="vgg11-bn"))


@pytest.mark.parametrize(
    ("recipe", "others", "message"),
    [
        ({"balance": "sampling"}, {"head": "average, classes sigmoid"}, "with the output `sigmoid`, use balance=loss"),
        (
            {"best": "balanced"},
            {"head": "average, classes sigmoid"},
            "best=balanced requires one class for each image",
        ),
        ({"temperature": 4.0}, {}, r"temperature=4 is for teachers' scores; use --teacher, or --set temperature=1"),
    ],
)
def test_what_is_undefined_is_refused(recipe, others, message, tmp_path):
    data = class_folders(tmp_path / "data")
    with pytest.raises(Error, match=message):
        train(options(data, tmp_path / "run", replace(QUICK, **recipe), **others))


def test_teachers_do_not_know_rare_classes(tmp_path):
    data = class_folders(tmp_path / "data")
    teacher = train(options(data, tmp_path / "teacher", replace(QUICK, epochs=1)))
    with pytest.raises(Error, match="balance=loss requires the classes of the images; with --teacher, they are not used"):
        train(options(data, tmp_path / "run", replace(QUICK, balance="loss"), teachers=[Network.read(teacher.path)]))
