"""Recipes: the settings of a training run as data, each with its source and the accuracy that it is known to reach."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from ..architectures import STRIDE
from ..errors import Error

# Pixels of an input up to which images are resized to just its size, crops are those of CIFAR, and networks get the head `gap`.
SMALL = 64
LEVELS = 30  # largest magnitude of `vgg.training.policies`
SWITCH = {"yes": True, "no": False}
NOT_NEGATIVE = (
    "lr", "plain_lr", "muon_rate", "warm_up", "weight_decay", "jitter", "lighting", "mixup", "cutmix", "patience", "thaw",
    "views", "match_weight",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run except the network, the images and the seed."""

    name: str
    source: str
    accuracy: str  # known results
    epochs: int
    batch: int = 256  # images in a step, on all devices together
    # muon: `vgg.training.optimizer.Muon` for the weights of hidden layers, SGD for all other parameters.
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.01  # learning rate of the last block, after the warm-up
    plain_lr: float = 0.0  # the same for networks without batch normalisation; 0: `lr`
    muon_rate: float = 0.1  # muon: ratio of the learning rate of the weights of hidden layers to `lr`, that of all others
    schedule: Literal["steps", "plateau", "cosine", "linear"] = "steps"
    drops: tuple[float, ...] = ()  # steps: the rate is divided by 10 after these shares of the epochs
    plateau: int = 5  # plateau: the rate is divided by 10 after this many epochs without improvement, at most three times
    warm_up: float = 0.0  # epochs in which the rate rises linearly
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_all: bool = True  # weight decay also of biases and batch normalisation
    dropout: float = 0.5  # probability, after fc6 and fc7; with the `gap` head, before fc8
    # Initial filters of new convolutions. identity: each convolution but the first one passes on its input channels, in its
    # first filters; the others are random. whitened: the same, and in a new network, filters of the first convolution whiten
    # patches of the training images (Jordan, arXiv 2404.00498, sections 3.2 and 3.3, where these stay as they are).
    filters: Literal["random", "identity", "whitened"] = "random"
    # Random crops. area: a random part of the image's area and aspect (torchvision's RandomResizedCrop). side: the short side
    # is resized to a random number of pixels and the input cropped from there (the paper's S). pad: the image is padded by
    # that many pixels on each side and the input cropped from there (as is usual on CIFAR).
    crop: Literal["area", "side", "pad"] = "area"
    crop_range: tuple[float, ...] = (0.08, 1.0)  # area: shares; side: pixels, for an input of 224; pad: pixels
    border: Literal["black", "reflect"] = "black"  # pad: what the image is padded with; reflect: its own mirror image
    # Mirrored images. random: half of them; alternating: each image in every other epoch, half of them in the first
    # (Jordan, arXiv 2404.00498, section 3.6).
    flip: Literal["random", "alternating", "none"] = "random"
    # Random operations on the pixels of each crop, `vgg.training.policies`.
    policy: Literal["none", "trivial", "rand"] = "none"
    operations: int = 2  # rand: number of operations on an image
    magnitude: int = 9  # rand: strength of the operations, 0 to 30
    jitter: float = 0.0  # largest relative change of brightness, contrast and saturation
    lighting: float = 0.0  # standard deviation of the RGB shift along ImageNet's principal components
    erasing: float = 0.0  # probability that a random rectangle of an image is erased (Zhong et al., arXiv 1708.04896)
    # Parameters of beta distributions; 0: none. With both, each batch is mixed in one of the two ways, as in timm.
    mixup: float = 0.0  # Zhang et al., arXiv 1710.09412
    cutmix: float = 0.0  # Yun et al., arXiv 1905.04899
    # Number of views of each image in a batch (Hoffer et al., arXiv 1901.09335). The number of steps in an epoch stays the
    # same, so an epoch has 1/repeats of the images, as with torchvision's RASampler.
    repeats: int = 1
    # Side of the crops in the first epoch as a share of the input's; it rises linearly to 1 in the last epoch, in steps of 32
    # pixels (Tan & Le, arXiv 2104.00298, section 4).
    progressive: float = 1.0
    smoothing: float = 0.0  # label smoothing
    # Decay for each step of the moving average of the weights, which is the result; 0: none. The first steps have a lower one.
    ema: float = 0.0
    bf16: bool = False  # convolutions and matrix products in bfloat16, on a GPU, or a CPU with instructions for it
    channels_last: bool = False
    # Classes with different numbers of images: `loss` weights the images, `sampling` draws those of rare classes more often.
    balance: Literal["none", "loss", "sampling"] = "none"
    # The validation measure that decides which epoch is kept: top-1 accuracy (F1 if images have several labels), balanced
    # accuracy (the mean recall of the classes), area under the ROC curve, or loss.
    best: Literal["accuracy", "balanced", "auc", "loss"] = "accuracy"
    patience: int = 0  # stop after this many epochs in which that measure has not improved; 0: never
    thaw: int = 0  # epochs until the next block of layers, from the last one down, learns too; 0: all from the start
    rate_decay: float = 1.0  # ratio of the learning rates of a block and the one before it
    views: int = 0  # random crops of each image, used in turn, for what is computed once; 0: a new crop each epoch
    temperature: float = 1.0  # divides the logits of teachers and student
    match_weight: float = 1.0  # of the mean square error of matched layers

    def for_input(self, pixels: int, batch_norm: bool) -> "Recipe":
        """The recipe for a network's input: up to 64 pixels, images are padded by an eighth, as is usual on CIFAR."""
        small = pixels <= SMALL and self.crop != "pad"
        lr = self.lr if batch_norm or not self.plain_lr else self.plain_lr
        cropped = {"crop": "pad", "crop_range": (pixels / 8,)} if small else {}
        return replace(self, lr=lr, plain_lr=0.0, **cropped)  # type: ignore[arg-type]

    def side(self, pixels: int, epoch: int) -> int:
        """The side of the crops in an epoch, in pixels, for an input of `pixels`; see `progressive`."""
        share = self.progressive + (1 - self.progressive) * min(epoch / max(self.epochs - 1, 1), 1.0)
        return pixels if share >= 1 else min(int(pixels * share / STRIDE + 0.5) * STRIDE, pixels)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "zoo",
            "ONNX Model Zoo, vgg/train_vgg.ipynb (GluonCV's train_imagenet.py)",
            "ImageNet top-1/top-5: VGG-16 72.62/91.14, VGG-16-bn 72.71/91.21, VGG-19 73.72/91.58, VGG-19-bn 73.83/91.79",
            epochs=100, nesterov=True, drops=(0.5, 0.8), jitter=0.4, lighting=0.1,
        ),
        Recipe(
            "paper",
            "Simonyan & Zisserman, arXiv 1409.1556, section 3.1, scale jittering; colours as in Krizhevsky et al. 2012",
            "ImageNet top-1/top-5, single scale: C 72.7/91.2, D (VGG-16) 74.4/91.9, E (VGG-19) 74.5/92.0",
            epochs=74, schedule="plateau", weight_decay=5e-4, crop="side", crop_range=(256, 512), lighting=0.1,
        ),
        Recipe(
            "torchvision",
            "torchvision, references/classification, VGG",
            "ImageNet top-1/top-5: VGG-11 69.02/88.63, VGG-16 71.59/90.38, VGG-16-bn 73.36/91.52, VGG-19-bn 74.22/91.84",
            epochs=90, drops=(1 / 3, 2 / 3),
        ),
        Recipe(
            "modern",
            "He et al., Bag of Tricks, arXiv 1812.01187, sections 3 to 5, with a moving average of the weights",
            "CIFAR-10: docs/training.md; not yet run on ImageNet",
            epochs=100, lr=0.05, plain_lr=0.01, schedule="cosine", warm_up=5, nesterov=True, weight_decay=5e-4, decay_all=False,
            mixup=0.2, smoothing=0.1, ema=0.999, bf16=True, channels_last=True,
        ),
        Recipe(
            "cifar",
            "as `modern`, for small images and few epochs; filters, flip, border and schedule of arXiv 2404.00498",
            "docs/training.md",
            epochs=25, batch=128, lr=0.1, plain_lr=0.01, schedule="linear", warm_up=2, nesterov=True, weight_decay=1e-3,
            decay_all=False, dropout=0.0, filters="whitened", crop="pad", crop_range=(2,), border="reflect",
            flip="alternating", smoothing=0.1, ema=0.999, bf16=True, channels_last=True,
        ),
        Recipe(
            "finetune",
            "Howard & Ruder, arXiv 1801.06146: blocks thaw from the last one down, each 2.6 times slower than the next",
            "docs/training.md",
            epochs=30, batch=32, lr=0.01, schedule="cosine", warm_up=1, nesterov=True, decay_all=False, crop_range=(0.35, 1.0),
            smoothing=0.1, bf16=True, channels_last=True, patience=6, thaw=2, rate_decay=2.6, views=4,
        ),
        Recipe(
            "distil",
            "Hinton et al., arXiv 1503.02531; matched layers as in Romero et al., arXiv 1412.6550",
            "docs/embedded-model.md",
            epochs=30, batch=64, optimizer="adamw", lr=1e-3, schedule="cosine", warm_up=1, weight_decay=1e-2, decay_all=False,
            dropout=0.1, crop_range=(0.3, 1.0), bf16=True, channels_last=True, views=4, temperature=4.0,
        ),
    )
}  # fmt: skip


def named(name: str) -> Recipe:
    """The recipe of that name. Raises Error if it is unknown."""
    if name not in RECIPES:
        raise Error(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with other values of single fields, each as `FIELD=VALUE`: `mixup=0`, `crop_range=256,512`, `nesterov=no`.

    A learning rate is then also that of networks without batch normalisation, unless `plain_lr` is given too.

    Raises:
        Error: a field is unknown, or its value invalid.
    """
    known = {field.name: field for field in fields(Recipe) if field.name not in ("name", "source", "accuracy")}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise Error(f"unknown field {name!r} of a recipe; choose from {', '.join(known)}")
        try:
            values[name] = _value(known[name].type, text)
        except (ValueError, KeyError):
            choices = tuple(SWITCH) if known[name].type is bool else _choices(known[name].type)
            value = getattr(recipe, name)
            usual = ",".join(map(str, value)) if isinstance(value, tuple) else value
            remedy = f"choose from {', '.join(choices)}" if choices else f"the recipe {recipe.name} has {usual}"
            raise Error(f"invalid value {text!r} of {name}; {remedy}") from None
    if "lr" in values:
        values.setdefault("plain_lr", 0.0)
    return checked(replace(recipe, **values))


def _value(kind: Any, text: str) -> Any:
    if kind is bool:
        return SWITCH[text]
    if choices := _choices(kind):
        if text not in choices:
            raise ValueError
        return text
    if get_args(kind):
        return tuple(float(number) for number in text.split(","))
    return kind(text)


def _choices(kind: Any) -> tuple[str, ...]:
    """The values of a field that is a Literal; nothing for other fields."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def checked(recipe: Recipe) -> Recipe:
    """The recipe. Raises Error if a value is out of range."""
    crop, shares = recipe.crop_range, ("dropout", "momentum", "smoothing", "ema")
    rules = {name: 0 <= getattr(recipe, name) < 1 for name in shares}
    rules |= {name: getattr(recipe, name) >= 1 for name in ("epochs", "batch", "operations", "repeats", "plateau")}
    rules |= {name: getattr(recipe, name) >= 0 for name in NOT_NEGATIVE}
    rules |= {name: getattr(recipe, name) > 0 for name in ("temperature", "rate_decay")}
    rules |= {"erasing": 0 <= recipe.erasing <= 1, "progressive": 0 < recipe.progressive <= 1}
    if recipe.nesterov and recipe.optimizer == "sgd":
        rules["momentum"] &= recipe.momentum > 0
    rules["magnitude"] = 0 <= recipe.magnitude <= LEVELS
    rules["crop_range"] = len(crop) == (1 if recipe.crop == "pad" else 2) and 0 <= crop[0] <= crop[-1] < float("inf")
    if recipe.crop == "area":
        rules["crop_range"] &= 0 < crop[0] <= crop[-1] <= 1
    rules |= {
        field.name: getattr(recipe, field.name) in _choices(field.type) for field in fields(recipe) if _choices(field.type)
    }
    if wrong := [f"{name}={getattr(recipe, name)}" for name, fits in rules.items() if not fits]:
        raise Error(f"recipe {recipe.name} with values out of range: {', '.join(wrong)}")
    if recipe.batch % recipe.repeats:
        raise Error(f"a batch of {recipe.batch} can't hold each image {recipe.repeats} times; use a multiple of `repeats`")
    if recipe.views and (recipe.repeats > 1 or recipe.progressive < 1):
        raise Error(f"`repeats` and `progressive` require new crops in each epoch; use --set views=0 instead of {recipe.views}")
    return recipe
