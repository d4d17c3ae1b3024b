"""What recipes do to images: borders, flips, operations on pixels, erasing, mixing, repeated views and sizes."""

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vgg
from training_helpers import cifar_folder, class_folders, options
from vgg import Error
from vgg.preprocessing import PRESETS
from vgg.progress import silent
from vgg.training import RECIPES, train
from vgg.training.augmentation import drawn_for, erase, mixing, random_view
from vgg.training.loader import Loader
from vgg.training.loop import Trainer
from vgg.training.policies import NAMES, OPERATIONS, augmented
from vgg.training.processes import processes
from vgg.training.setup import prepare

SMALL = replace(PRESETS["torchvision"], size=32, crop=32)
PLAIN = replace(RECIPES["cifar"], crop_range=(0,), flip="none")
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def views(image, recipe, count, side=32):
    return [random_view(image, recipe, side, drawn_for(recipe, 0, view, [0])[0]) for view in range(count)]


def test_a_border_is_the_images_own_reflection():
    for image, padding in ((IMAGE, 2), (IMAGE[:4, :4], 6)):  # a border may be wider than the image
        side = len(image)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), "reflect")
        shifts = range(2 * padding + 1)
        possible = {padded[row:, column:][:side, :side].tobytes() for row in shifts for column in shifts}
        seen = {one.tobytes() for one in views(image, replace(PLAIN, crop_range=(padding,)), 1500, side)}
        assert seen == possible


def test_of_an_image_that_is_not_square_training_takes_the_middle_as_evaluation_does():
    image = np.broadcast_to(np.arange(0, 240, 3, dtype=np.uint8)[:, None], (48, 80, 3))
    for one in map(np.ascontiguousarray, (image, image.transpose(1, 0, 2))):
        [seen] = views(one, PLAIN, 1)
        np.testing.assert_allclose(seen.astype(int), SMALL.place(Image.fromarray(one)), atol=4)  # one pixel is 3


def test_a_black_border_may_be_wider_than_the_image():
    image = IMAGE[:4, :4]
    seen = views(image, replace(PLAIN, crop_range=(6,), border="black"), 1500, 4)
    padded = np.pad(image, ((6, 6), (6, 6), (0, 0)))
    possible = {padded[row:, column:][:4, :4].tobytes() for row in range(13) for column in range(13)}
    assert {one.tobytes() for one in seen} == possible


def test_alternating_flips_mirror_each_image_in_every_other_view():
    recipe = replace(PLAIN, flip="alternating")
    mirrored = np.array([[drawn[2] < 0.5 for drawn in drawn_for(recipe, 7, view, range(400))] for view in range(6)])
    assert (mirrored[1:] != mirrored[:-1]).all()
    assert 160 < mirrored[0].sum() < 240
    for view, (seen, turned) in enumerate(zip(views(IMAGE, recipe, 6), views(IMAGE, recipe, 7)[1:], strict=True)):
        np.testing.assert_array_equal(seen, turned[:, ::-1], err_msg=str(view))
    assert not np.array_equal(mirrored[0], [drawn[2] < 0.5 for drawn in drawn_for(recipe, 8, 0, range(400))])


def test_without_flips_nothing_is_mirrored():
    assert all((seen == IMAGE).all() for seen in views(IMAGE, PLAIN, 50))


def operated(name, policy="trivial", level=30, direction=0.9, image=IMAGE):
    """An image after one operation at a level of 0 to 30."""
    recipe = replace(PLAIN, policy=policy, operations=1, magnitude=level)
    return augmented(image, recipe, [(NAMES.index(name) + 0.5) / len(NAMES), (level + 0.5) / 31, direction])


def moved(image, right, down):
    result = np.zeros_like(image)
    height, width = image.shape[:2]
    result[max(down, 0) : height + down, max(right, 0) : width + right] = image[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return result


def test_operations_do_what_the_papers_list():
    wide = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    expected = {
        ("identity", "trivial", 30, 0.9): IMAGE,
        ("translate-x", "trivial", 15, 0.9): moved(IMAGE, 16, 0),
        ("translate-x", "trivial", 15, 0.1): moved(IMAGE, -16, 0),
        ("translate-y", "trivial", 3, 0.9): moved(IMAGE, 0, 3),
        ("translate-y", "rand", 9, 0.1): moved(IMAGE, 0, -int(150 / 331 * 32 * 9 / 30)),
        ("rotate", "trivial", 20, 0.9): np.rot90(IMAGE),
        ("rotate", "trivial", 20, 0.1): np.rot90(IMAGE, -1),
        ("posterize", "trivial", 30, 0.9): IMAGE & 0b11000000,
        ("posterize", "rand", 30, 0.9): IMAGE & 0b11110000,
        ("solarize", "trivial", 30, 0.9): 255 - IMAGE,
        ("solarize", "rand", 10, 0.9): np.where(IMAGE >= 170, 255 - IMAGE, IMAGE),
    }
    for (name, policy, level, direction), image in expected.items():
        np.testing.assert_array_equal(operated(name, policy, level, direction), image, err_msg=f"{name} {policy} {level}")
    np.testing.assert_array_equal(operated("translate-x", "rand", 30, image=wide), moved(wide, 29, 0))
    for direction, factor in ((0.9, 1.99), (0.1, 0.01)):
        close = {"rtol": 0, "atol": 2}  # Pillow rounds more than once
        np.testing.assert_allclose(operated("brightness", direction=direction), np.clip(IMAGE * factor, 0, 255), **close)
        grey = np.asarray(Image.fromarray(IMAGE).convert("L")).astype(float)
        faded = np.clip(grey[..., None] + (IMAGE - grey[..., None]) * factor, 0, 255)
        np.testing.assert_allclose(operated("colour", direction=direction), faded, **close)
        contrast = np.clip(grey.mean() + (IMAGE - grey.mean()) * factor, 0, 255)
        np.testing.assert_allclose(operated("contrast", direction=direction), contrast, **close)
    sheared = operated("shear-x", level=10)  # by 0.33
    for row in (0, 15, 31):
        shift = int((row + 0.5) * 0.33 + 0.5)
        np.testing.assert_array_equal(sheared[row, : 32 - shift], IMAGE[row, shift:])
    np.testing.assert_array_equal(operated("shear-y", level=10), sheared_along_the_other_axis(10))
    dull = IMAGE // 4 + 60
    assert (operated("autocontrast", image=dull).min(), operated("autocontrast", image=dull).max()) == (0, 255)
    skewed = (IMAGE.astype(int) ** 2 // 255).astype(np.uint8)
    assert abs(operated("equalize", image=skewed).mean() - 127.5) < 15 < 30 < abs(skewed.mean() - 127.5)
    sharp, smooth = (np.abs(np.diff(operated("sharpness", direction=d).astype(int), axis=1)).mean() for d in (0.9, 0.1))
    assert sharp > smooth


def sheared_along_the_other_axis(level):
    return operated("shear-x", level=level, image=np.ascontiguousarray(IMAGE.transpose(1, 0, 2))).transpose(1, 0, 2)


def test_rand_augment_applies_as_many_operations_as_the_recipe_says():
    recipe = replace(PLAIN, policy="rand", operations=3, magnitude=30)
    once = [(NAMES.index("translate-x") + 0.5) / len(NAMES), 0.0, 0.9]  # by 14 pixels
    np.testing.assert_array_equal(augmented(IMAGE, recipe, once * 2), moved(IMAGE, 28, 0))
    assert len(drawn_for(recipe, 0, 0, [0])[0]) - len(drawn_for(PLAIN, 0, 0, [0])[0]) == 3 * 3


def test_operations_levels_and_directions_are_drawn_evenly():
    drawn = np.array(drawn_for(replace(PLAIN, policy="trivial"), 0, 3, range(6000)))[:, -3:]
    for column, count in ((0, len(OPERATIONS)), (1, 31), (2, 2)):
        found = np.bincount((drawn[:, column] * count).astype(int), minlength=count)
        assert found.min() > 6000 / count * 0.75
        assert found.max() < 6000 / count * 1.25


EVERYTHING = replace(RECIPES["cifar"], policy="trivial", repeats=2)
DIGEST = """
import sys
from hashlib import sha256
sys.path[:0] = {tests}
from test_augmentation import EVERYTHING, SMALL, Loader, vgg
batches = Loader(vgg.sources.open({data!r}, 3), EVERYTHING, SMALL, 5, 2).batches([[3, 1], [2]], 4)
print([sha256(batch.inputs.tobytes()).hexdigest() for batch in batches])
"""


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_views_are_the_same_in_any_order_and_thread(policy, tmp_path):
    data = vgg.sources.open(class_folders(tmp_path / "data"), 3)
    recipe = replace(EVERYTHING, policy=policy)
    one, two = (Loader(data, recipe, SMALL, 5, workers) for workers in (1, 3))
    [whole] = one.batches([range(6)], 4)
    for part in two.batches([[5, 4], [3], [0, 1, 2]], 4):
        for position, (index, pixels) in enumerate(zip(part.indices, part.inputs, strict=True)):
            np.testing.assert_array_equal(pixels, whole.inputs[2 * index + position % 2])
    for others in ((5, replace(recipe, policy="none"), 4), (6, recipe, 4), (5, recipe, 5)):
        [other] = Loader(data, others[1], SMALL, others[0], 1).batches([range(6)], others[2])
        assert not np.array_equal(other.inputs, whole.inputs)


def test_views_are_the_same_in_another_process(tmp_path):
    data = class_folders(tmp_path / "data")
    here = Loader(vgg.sources.open(data, 3), EVERYTHING, SMALL, 5, 1).batches([[3, 1], [2]], 4)
    digests = [sha256(batch.inputs.tobytes()).hexdigest() for batch in here]
    program = DIGEST.format(tests=[str(Path(__file__).parent), str(Path(__file__).parent.parent)], data=str(data))
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(digests)


def test_repeated_images_are_views_of_their_own(tmp_path):
    data = vgg.sources.open(class_folders(tmp_path / "data"), 3)
    [batch] = Loader(data, replace(RECIPES["cifar"], repeats=3), SMALL, 0, 1).batches([[5, 20]], 2)
    assert batch.indices.tolist() == [5, 5, 5, 20, 20, 20]
    assert batch.targets.tolist() == [0, 0, 0, 2, 2, 2]
    once = Loader(data, RECIPES["cifar"], SMALL, 0, 1)
    for copy, view in enumerate((6, 7, 8)):
        [expected] = once.batches([[5, 20]], view)
        np.testing.assert_array_equal(batch.inputs[copy::3], expected.inputs)


def test_erased_rectangles_are_as_frequent_and_as_large_as_in_the_paper():
    torch.manual_seed(0)
    images = torch.full((500, 3, 32, 48), -1.0)
    assert torch.equal(erase(images, 0.0), images)
    found = erase(images, 0.4)
    erased = (found != -1).all(1)
    assert torch.equal(erased, (found != -1).any(1))
    some = erased[erased.any(-1).any(-1)]
    assert 160 < len(some) < 240
    rows, columns = some.any(2), some.any(1)
    assert torch.equal(some, rows[:, :, None] & columns[:, None, :])  # rectangles
    heights, widths = rows.sum(1), columns.sum(1)
    for lines, sizes in ((rows, heights), (columns, widths)):  # of neighbouring rows and columns
        assert torch.equal((lines[:, 1:] & lines[:, :-1]).sum(1), sizes - 1)
    shares, aspects = heights * widths / (32 * 48), heights / widths
    assert 0.015 < shares.min() < 0.05 < 0.29 < shares.max() < 0.36
    assert 0.2 < aspects.min() < 0.45 < 2.2 < aspects.max() < 4.5
    noise = found[found != -1]
    assert 0 <= noise.min() < 1
    assert 254 < noise.max() <= 255
    assert abs(noise.mean() - 127.5) < 2
    assert rows[:, 0].any()
    assert rows[:, -1].any()


def test_only_training_images_are_erased(tmp_path):
    data = class_folders(tmp_path / "data")
    given = options(data, tmp_path / "run", replace(PLAIN, batch=8, erasing=1.0))
    with processes("cpu") as process:
        trainer = Trainer(given, prepare(given, print), process, silent, print)
        batch = next(trainer.batches())
        changed = (trainer.inputs_and_targets(batch, 0)[0] != trainer.inputs(batch)).any(1).float().mean((1, 2))
    assert changed.min() > 0.015
    assert changed.max() < 0.36


def classes_as_images(count, side=32):
    """Scores of classes, and images of which each pixel's channels are the scores."""
    scores = torch.eye(count)
    return scores, scores[:, :, None, None].repeat(1, 1, side, side)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.3, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_scores_are_mixed_as_images_are(mixup, cutmix):
    scores, images = classes_as_images(8)
    recipe, cuts, shares = replace(PLAIN, mixup=mixup, cutmix=cutmix), 0, []
    torch.manual_seed(0)
    for _ in range(200):
        mix = mixing(images, recipe)
        mixed = mix.images(images)
        torch.testing.assert_close(mixed.mean((2, 3)), mix.scores(scores))
        torch.testing.assert_close(mix.scores(scores).sum(1), torch.ones(8))
        cut = torch.equal(mixed, mixed.round())  # every pixel is of one image
        cuts += cut
        shares.append(mix.share)
    assert {(0.3, 0.0): cuts <= 5, (0.0, 1.0): cuts == 200, (0.2, 1.0): 60 < cuts < 140}[mixup, cutmix]
    assert len(set(shares)) > 100
    assert torch.equal(images, classes_as_images(8)[1])  # the given images stay


def test_cut_parts_are_rectangles_anywhere_of_evenly_drawn_area():
    torch.manual_seed(1)
    _, images = classes_as_images(2, side=64)
    covered, shares = torch.zeros(64, 64), []
    for _ in range(400):
        mix = mixing(images, replace(PLAIN, cutmix=1.0))
        part = torch.zeros(64, 64)
        part[mix.box] = 1
        covered += part
        shares.append(1 - mix.share)
        assert part.mean().item() == pytest.approx(1 - mix.share)
    assert covered.min() > 20  # also the corners
    assert max(shares) > 0.85  # a rectangle that is not cut off has the drawn area
    assert covered[32, 32] > 1.3 * covered[0, 0]  # centres are anywhere, so borders are covered less often


def test_images_with_several_labels_are_cut_with_their_scores(tmp_path):
    """Images of one grey level each, so every pixel tells which image, and so which labels, it is from."""
    labels = np.random.default_rng(0).integers(0, 2, (40, 4)).astype(bool)
    labels[:2] = [[True, True, True, True], [False, False, False, False]]
    (tmp_path / "data").mkdir()
    lines = ["image,a,b,c,d"]
    for number, row in enumerate(labels):
        Image.new("RGB", (32, 32), (5 * number,) * 3).save(tmp_path / "data" / f"{number}.png")
        lines.append(",".join([f"data/{number}.png", *map(str, row.astype(int))]))
    (tmp_path / "table.csv").write_text("\n".join(lines))
    recipe = replace(RECIPES["cifar"], batch=16, cutmix=1.0)
    given = options(tmp_path / "table.csv", tmp_path / "run", recipe, head="average, classes sigmoid")
    torch.manual_seed(0)
    with processes("cpu") as process:
        trainer = Trainer(given, prepare(given, print), process, silent, print)
        batch = next(trainer.batches())
        inputs, scores, _ = trainer.inputs_and_targets(batch, 0)
    mean, std = PRESETS["torchvision"].mean[0], PRESETS["torchvision"].std[0]
    numbers = ((inputs[:, 0] * std + mean) * 255 / 5).round().int().numpy()
    assert len(np.unique(numbers[0])) == 2
    np.testing.assert_allclose(scores.numpy(), labels[numbers].mean((1, 2)), rtol=0, atol=1e-5)


def test_without_a_parameter_nothing_is_mixed():
    assert mixing(torch.zeros(2, 3, 4, 4), PLAIN) is None


def test_crops_grow_from_epoch_to_epoch(tmp_path):
    recipe = replace(RECIPES["modern"], progressive=0.5, epochs=8)
    assert [recipe.side(224, epoch) for epoch in range(8)] == [128, 128, 160, 160, 192, 192, 224, 224]
    assert [replace(recipe, progressive=1.0).side(224, epoch) for epoch in range(8)] == [224] * 8
    assert replace(recipe, progressive=0.75, epochs=2).side(100, 1) == 100
    data = vgg.sources.open(class_folders(tmp_path / "data"), 3)
    loader = Loader(data, recipe, replace(SMALL, size=128, crop=128), 0, 1)
    assert [next(loader.batches([[0]], view)).inputs.shape[1] for view in (0, 7, None)] == [64, 128, 128]


@pytest.mark.parametrize(
    ("share", "others", "message"),
    [
        (0.5, {}, r"progressive=0.5: begins with 16 pixels; networks take 32 or more"),
        (
            0.5,
            {"size": 64, "head": "fc"},
            "progressive requires a head for images of any size, such as gap; vgg11 has a fixed one",
        ),
    ],
)
def test_networks_that_cannot_grow_are_refused(share, others, message, tmp_path):
    recipe = replace(RECIPES["cifar"], batch=8, epochs=1, progressive=share)
    with pytest.raises(Error, match=message):
        train(options(class_folders(tmp_path / "data"), tmp_path / "run", recipe, **others))


def test_an_epoch_with_repeats_has_as_many_steps_and_fewer_images(tmp_path):
    data = cifar_folder(tmp_path / "cifar", train=80)
    recipe = replace(RECIPES["cifar"], batch=16, repeats=4)
    given = options(data, tmp_path / "run", recipe, arch="vgg11-bn", micro_batch=9)
    with processes("cpu") as process:
        trainer = Trainer(given, prepare(given, print), process, silent, print)
        batches = list(trainer.batches())
    assert (trainer.steps, trainer.parts) == (4, 2)
    seen = [batch.indices.tolist() for batch in batches]
    assert [len(indices) for indices in seen] == [8] * 8
    distinct = [index for indices in seen for index in indices[::4]]
    assert [index for indices in seen for index in indices] == [index for index in distinct for _ in range(4)]
    assert len(set(distinct)) == 16
