from dataclasses import replace

import pytest

from vgg import Error
from vgg.cli.train import RECIPES as NAMES
from vgg.training import RECIPES
from vgg.training.optimizer import rate
from vgg.training.recipes import changed, checked, named


def test_the_command_line_names_the_recipes_that_there_are():
    assert tuple(RECIPES) == NAMES
    assert all(recipe.source and recipe.accuracy for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("name", "epochs", "rates"),
    [
        ("zoo", (0, 49, 50, 79, 80, 99), (0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001)),
        ("torchvision", (0, 29, 30, 59, 60, 89), (0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001)),
        ("modern", (2.5, 5, 52.5, 100), (0.025, 0.05, 0.025, 0)),
        ("cifar", (1, 2, 13.5, 25), (0.05, 0.1, 0.05, 0)),
    ],
)
def test_the_rate_falls_as_published(name, epochs, rates):
    assert [rate(RECIPES[name], epoch, []) for epoch in epochs] == pytest.approx(rates)


def test_on_a_plateau_the_rate_falls_three_times_as_in_the_paper():
    recipe = replace(RECIPES["paper"], plateau=2)
    rates = [rate(recipe, epoch, [10, 20, *[15] * (epoch - 2)][:epoch]) for epoch in range(12)]
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 2 + [0.0001] * 2 + [0.00001] * 4)


def test_single_fields_can_be_changed():
    recipe = changed(RECIPES["modern"], ["mixup=0", "crop=side", "crop_range=256,512", "nesterov=no", "epochs=3"])
    assert (recipe.mixup, recipe.crop, recipe.crop_range, recipe.nesterov, recipe.epochs) == (0, "side", (256, 512), False, 3)


def test_a_given_rate_is_that_of_networks_without_batch_normalisation_too():
    rates = {
        settings: [changed(RECIPES["cifar"], settings).for_input(32, batch_norm).lr for batch_norm in (True, False)]
        for settings in ((), ("lr=0.3",), ("lr=0.3", "plain_lr=0.02"), ("plain_lr=0.02", "lr=0.3"))
    }
    assert list(rates.values()) == [[0.1, 0.01], [0.3, 0.3], [0.3, 0.02], [0.3, 0.02]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("colour=1", "unknown field 'colour' of a recipe; choose from epochs, batch"),
        ("name=x", "unknown field 'name' of a recipe"),
        ("epochs=many", "invalid value 'many' of epochs; the recipe modern has 100"),
        ("nesterov=maybe", "invalid value 'maybe' of nesterov; choose from yes, no"),
        ("crop_range=all", "invalid value 'all' of crop_range; the recipe modern has 0.08,1.0"),
        ("momentum=0", "values out of range: momentum=0.0"),
        ("weight_decay=-1e-4", "values out of range: weight_decay=-0.0001"),
        ("patience=-1", "values out of range: patience=-1"),
        ("plateau=0", "values out of range: plateau=0"),
        ("crop=round", "invalid value 'round' of crop; choose from area, side, pad"),
        ("flip=yes", "invalid value 'yes' of flip; choose from random, alternating, none"),
        ("policy=auto", "invalid value 'auto' of policy; choose from none, trivial, rand"),
        ("magnitude=31", "values out of range: magnitude=31"),
        ("operations=0", "values out of range: operations=0"),
        ("erasing=1.5", "values out of range: erasing=1.5"),
        ("progressive=0", "values out of range: progressive=0"),
        ("repeats=3", "a batch of 256 can't hold each image 3 times; use a multiple of `repeats`"),
        ("dropout=1", "recipe modern with values out of range: dropout=1.0"),
        ("views=-1", "values out of range: views=-1"),
        ("crop=pad", r"values out of range: crop_range=\(0.08, 1.0\)"),
        ("crop_range=0.5,2", r"values out of range: crop_range=\(0.5, 2.0\)"),
    ],
)
def test_invalid_settings_are_refused(setting, message):
    with pytest.raises(Error, match=message):
        changed(RECIPES["modern"], [setting])


def test_a_value_that_is_no_choice_is_refused_from_python_too():
    with pytest.raises(Error, match="values out of range: flip=True"):
        checked(replace(RECIPES["modern"], flip=True))


@pytest.mark.parametrize("setting", ["repeats=2", "progressive=0.5"])
def test_views_that_are_computed_once_cannot_change(setting):
    with pytest.raises(Error, match="require new crops in each epoch; use --set views=0 instead of 4"):
        changed(RECIPES["finetune"], [setting])


def test_small_inputs_are_padded_and_networks_without_batch_norm_learn_more_slowly():
    small = RECIPES["modern"].for_input(32, batch_norm=False)
    assert (small.crop, small.crop_range, small.lr) == ("pad", (4,), 0.01)
    large = RECIPES["modern"].for_input(224, batch_norm=True)
    assert (large.crop, large.lr) == ("area", 0.05)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(Error, match="unknown recipe 'new'; choose from zoo, paper"):
        named("new")
