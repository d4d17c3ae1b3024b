from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vgg
import vgg.files
import vgg.sources.shards
from training_helpers import cifar100_folder, cifar_folder, class_folders
from vgg import Error
from vgg.labels import imagenet
from vgg.module import Normalisation
from vgg.preprocessing import PRESETS
from vgg.sources import cifar, classes_of
from vgg.training import RECIPES
from vgg.training.augmentation import COMPONENTS, DEVIATIONS, Colours, drawn_for, draws, random_view
from vgg.training.loader import Loader

SMALL = replace(PRESETS["torchvision"], size=32, crop=32)


def view_of(image, recipe, side, view):
    """A view of the first image of a dataset, with seed 0."""
    return random_view(image, recipe, side, drawn_for(recipe, 0, view, [0])[0])


def ramp(height, width):
    """An image whose red is the row's and whose green is the column's share."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, height)[:, None]
    pixels[..., 1] = np.linspace(0, 255, width)
    return pixels


def test_areas_are_as_large_and_as_wide_as_the_recipe_says():
    recipe, shares, aspects = replace(RECIPES["zoo"], flip="none"), [], []
    for seed in range(400):
        seen = view_of(ramp(300, 400), recipe, 32, seed).astype(float)
        high = (seen[-1, :, 0].mean() - seen[0, :, 0].mean()) / 255 * 300 * 32 / 31
        wide = (seen[:, -1, 1].mean() - seen[:, 0, 1].mean()) / 255 * 400 * 32 / 31
        shares.append(high * wide / (300 * 400))
        aspects.append(wide / high)
    assert 0.05 < min(shares) < 0.15
    assert 0.9 < max(shares) < 1.05
    assert 0.7 < min(aspects) < 0.8 < 1.25 < max(aspects) < 1.42


def test_the_papers_scales_are_jittered():
    recipe, shorts = replace(RECIPES["paper"], flip="none"), []
    for seed in range(200):
        seen = view_of(ramp(300, 400), recipe, 224, seed).astype(float)
        slope = (seen[-1, :, 0].mean() - seen[0, :, 0].mean()) / 223  # of the image's 255 levels a row
        shorts.append(255 / slope)
    assert 250 < min(shorts) < 270
    assert 490 < max(shorts) < 520


def test_small_images_are_padded_and_cropped():
    recipe = replace(RECIPES["modern"].for_input(32, True), flip="none")
    image = np.full((32, 32, 3), 200, np.uint8)
    seen = [view_of(image, recipe, 32, seed) for seed in range(300)]
    rows = {int((one[:, 16, 0] > 0).sum()) for one in seen}
    assert rows == {28, 29, 30, 31, 32}
    assert any((one == 200).all() for one in seen)


def test_half_of_the_crops_are_mirrored():
    recipe = replace(RECIPES["modern"].for_input(32, True), crop_range=(0,))
    mirrored = sum(int(view_of(ramp(32, 32), recipe, 32, seed)[0, 0, 1] > 128) for seed in range(400))
    assert 150 < mirrored < 250


def test_a_crop_depends_on_the_seed_the_image_and_the_epoch_only(tmp_path):
    dataset = vgg.sources.open(class_folders(tmp_path / "data"), 3)
    recipe = replace(RECIPES["modern"].for_input(32, True))
    one, two = (Loader(dataset, recipe, SMALL, 0, workers) for workers in (1, 3))
    [whole] = one.batches([range(6)], 4)
    parts = list(two.batches([[5, 4], [3], [0, 1, 2]], 4))
    for part in parts:
        for index, pixels, target in zip(part.indices, part.inputs, part.targets, strict=True):
            np.testing.assert_array_equal(pixels, whole.inputs[index])
            assert target == whole.targets[index]
    [other] = one.batches([range(6)], 5)
    assert not np.array_equal(other.inputs, whole.inputs)
    [as_evaluated] = one.batches([[0]])
    expected = SMALL.place(Image.open(dataset.samples[0].path))
    np.testing.assert_array_equal(as_evaluated.inputs[0], expected)


def test_decoded_images_are_not_read_again(tmp_path):
    dataset = vgg.sources.open(class_folders(tmp_path / "data"), 3)
    loader = Loader(dataset, RECIPES["modern"].for_input(32, True), SMALL, 0, 2)
    [expected] = loader.batches([[1, 2]], 0)
    Path(dataset.samples[0].path).write_bytes(b"no image")
    other = Loader(dataset, RECIPES["modern"].for_input(32, True), SMALL, 0, 2)
    [_] = other.batches([[1]])  # an image that was used before does not keep the others from being decoded
    other.decode(np.arange(3))
    for sample in dataset.samples[1:]:
        Path(sample.path).unlink()
    [batch] = other.batches([[0, 1, 2, 3]], 0)
    assert batch.indices.tolist() == [1, 2]
    np.testing.assert_array_equal(batch.inputs, expected.inputs)
    assert set(other.errors) == {dataset.samples[0].name, dataset.samples[3].name}


def test_an_unreadable_image_does_not_end_decoding(tmp_path):
    dataset = vgg.sources.open(class_folders(tmp_path / "data"), 3)
    broken, readable = dataset.samples[:2]
    samples = [readable] * 640
    samples[63] = broken  # the last of those that a thread decodes at once
    Path(broken.path).write_bytes(b"no image")
    loader = Loader(replace(dataset, samples=samples), RECIPES["modern"].for_input(32, True), SMALL, 0, 2)
    loader.decode(np.arange(640))
    Path(readable.path).unlink()
    [batch] = loader.batches([[63, 639]], 0)
    assert batch.indices.tolist() == [639]


def test_what_is_drawn_is_even_and_different_for_each_seed_view_and_image():
    drawn = np.array([[draws(seed, view, range(50)) for view in range(10)] for seed in range(10)])
    assert len(np.unique(drawn)) == drawn.size
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    np.testing.assert_allclose(drawn.mean((0, 1, 2)), 0.5, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(drawn.reshape(-1, drawn.shape[-1]).T), np.eye(drawn.shape[-1]), atol=0.06)


@pytest.mark.parametrize("preset", ["torchvision", "caffe"])
def test_batches_are_normalised_as_the_preprocessing_says(preset):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    recipe = replace(RECIPES["modern"])
    found = Normalisation(PRESETS[preset])(Colours(recipe, torch.device("cpu"))(pixels, training=True))
    expected = np.stack([PRESETS[preset].normalise(one) for one in pixels])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_colours_are_jittered_as_torchvision_does_it():
    """kornia's ColorJitter, held to the formulas of torchvision's documentation for a fixed order and fixed factors."""
    from kornia.augmentation import ColorJitter

    batch = torch.rand(1, 3, 8, 8, generator=torch.manual_seed(0))
    found = ColorJitter((1.3, 1.3), (0.7, 0.7), (1.2, 1.2), order=(0, 1, 2))(batch)
    grey = torch.tensor([0.2989, 0.587, 0.114])[:, None, None]
    expected = (batch * 1.3).clamp(0, 1)
    expected = (0.7 * expected + 0.3 * (expected * grey).sum(1).mean()).clamp(0, 1)
    expected = (1.2 * expected - 0.2 * (expected * grey).sum(1, keepdim=True)).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_jitter_varies_between_the_images_of_a_batch_within_its_range():
    recipe = replace(RECIPES["modern"], jitter=0.4)
    torch.manual_seed(0)
    colours = Colours(recipe, torch.device("cpu"))(np.full((64, 4, 4, 3), 100, np.uint8), training=True)
    means = colours.mean((1, 2, 3))
    assert 58 < means.min() < 75 < 125 < means.max() < 142


def test_lighting_shifts_along_the_principal_components():
    recipe = replace(RECIPES["modern"], lighting=0.1)
    torch.manual_seed(0)
    colours = Colours(recipe, torch.device("cpu"))(np.full((4000, 1, 1, 3), 128, np.uint8), training=True)
    shifts = (colours[:, :, 0, 0] / 255 - 128 / 255).double()
    expected = torch.tensor(COMPONENTS) @ torch.diag((0.1 * torch.tensor(DEVIATIONS)) ** 2) @ torch.tensor(COMPONENTS).T
    torch.testing.assert_close(torch.cov(shifts.T), expected.double(), rtol=0.15, atol=1e-5)


def test_cifar10_is_read_as_published(tmp_path):
    folder = cifar_folder(tmp_path / "cifar")
    dataset = vgg.sources.open(folder, 10)
    assert [sample.target for sample in dataset][:12] == [*range(10), 0, 1]
    raw = (folder / "data_batch_1.bin").read_bytes()
    pixels = np.asarray(vgg.images.open_image(dataset.samples[3].read()))
    np.testing.assert_array_equal(pixels[0, :32, 0], np.frombuffer(raw, np.uint8)[3 * 3073 + 1 :][:32])
    np.testing.assert_array_equal(pixels[31, :, 2], np.frombuffer(raw, np.uint8)[3 * 3073 + 1 + 3072 - 32 :][:32])
    np.testing.assert_array_equal(np.asarray(dataset.samples[3].image()), pixels)
    assert len(vgg.sources.open(folder / "test_batch.bin", 10)) == 16
    assert classes_of(folder)[1].names == cifar.NAMES
    (folder / "data_batch_2.bin").write_bytes(raw[:-1])
    with pytest.raises(Error, match=r"data_batch_2.bin: is truncated, or not in CIFAR-10's binary format"):
        vgg.sources.open(folder, 10)
    with pytest.raises(Error, match="is CIFAR-10, which has 10 classes; the model has 1000"):
        vgg.sources.open(folder / "test_batch.bin", 1000)


def test_cifar100_is_read_as_published(tmp_path):
    folder = cifar100_folder(tmp_path / "cifar")
    dataset = vgg.sources.open(folder, 100)
    raw = np.fromfile(folder / "train.bin", np.uint8).reshape(-1, 3074)
    assert [sample.target for sample in dataset] == raw[:, 1].tolist()
    np.testing.assert_array_equal(np.asarray(dataset.samples[7].image()), raw[7, 2:].reshape(3, 32, 32).transpose(1, 2, 0))
    assert len(vgg.sources.open(folder / "test.bin", 100)) == 16
    count, labels = classes_of(folder)
    assert (count, labels.names[raw[7, 1]]) == (100, f"fine{raw[7, 1]}")
    assert classes_of(folder / "test.bin")[1] == labels
    assert vgg.sources.splits(folder) == (str(folder), None, str(folder / "test.bin"))
    assert vgg.sources.is_cifar(folder)
    assert [one for one, _ in vgg.sources.find(folder)][-1] == f"{folder}/train.bin/{len(raw) - 1}"
    with pytest.raises(Error, match="is CIFAR-100, which has 100 classes; the model has 10"):
        vgg.sources.open(folder / "test.bin", 10)
    raw[3, 1] = 100
    raw.tofile(folder / "train.bin")
    with pytest.raises(Error, match=r"train.bin: is truncated, or not in CIFAR-100's binary format"):
        vgg.sources.open(folder, 100)
    (folder / "fine_label_names.txt").write_text("apple\n")
    with pytest.raises(Error, match=r"fine_label_names.txt: has 1 names; CIFAR-100 has 100 classes"):
        classes_of(folder)
    (folder / "fine_label_names.txt").unlink()
    assert not vgg.sources.is_cifar(folder)  # train.bin may be another program's
    with pytest.raises(Error, match=r"fine_label_names.txt: file or folder not found"):
        classes_of(folder / "test.bin")


def test_classes_are_found_in_folders_lists_and_shards(tmp_path):
    assert classes_of(class_folders(tmp_path / "data"))[1].names == ("class0", "class1", "class2")
    (tmp_path / "numbers.txt").write_text("a.png 0\nb.png 1\nc.png 0\n")
    assert classes_of(tmp_path / "numbers.txt") == (2, None)
    (tmp_path / "gaps.txt").write_text("a.png 0\nb.png 4\n")
    with pytest.raises(Error, match="has 2 classes with numbers up to 4"):
        classes_of(tmp_path / "gaps.txt")
    (tmp_path / "names.txt").write_text("a.png cat\nb.png ant\nc.png cat\n")
    assert classes_of(tmp_path / "names.txt")[1].names == ("ant", "cat")
    for wnid in imagenet().wnids[281:284]:
        (tmp_path / "cats" / wnid).mkdir(parents=True)
    assert classes_of(tmp_path / "cats")[1].names == imagenet().names[281:284]
    with vgg.files.replacing(tmp_path / "shard.tar") as file:
        vgg.sources.shards.write(file, [("1", b"x", 2), ("2", b"x", 0), ("3", b"x", 1)])
    assert classes_of(tmp_path / "shard.tar") == (3, None)
