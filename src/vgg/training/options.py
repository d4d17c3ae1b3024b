"""The options of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..labels import Labels
from ..network import Network
from .recipes import Recipe


@dataclass(frozen=True)
class Options:
    """Options of a training run."""

    # Labelled images as for `vgg.sources.open`, or a folder with such in `train` and `val`; with teachers, any images. If the
    # head's output is `sigmoid`, an image of a list or table may have any number of classes.
    data: str | Path
    output: Path  # folder of the run
    recipe: Recipe
    # Labelled images that choose the epoch; by default `val` of data, else one in ten training images, at most 2,500.
    val: str | Path | None = None
    test: str | Path | None = None  # labelled images, read once after training; by default `test` of data, if there are any
    # Regular expression: images in whose names it matches the same text, or has the same first group, are not separated when
    # images are held out, nor by folds.
    group: str = ""
    # Number of the fold whose images are the test, from 1, and number of folds; see `cross_validate`. None: there are no folds.
    fold: tuple[int, int] | None = None
    labels: Labels | None = None  # names of the classes, for lists and shards with numbers
    arch: str = "vgg16-bn"  # architecture of a new network
    width: float = 1.0  # its width, as a multiple of the paper's
    size: int | None = None  # its input in pixels; by default 224, for CIFAR 32
    # Text as in `vgg.heads`. By default that of `start`; of a new network `gap` for inputs of 64 pixels or less, else `fc`.
    head: str | None = None
    init: Network | None = None  # initialise a new network with the parameters of this one that fit
    start: Network | None = None  # fine-tune this network instead of a new one; with `head`, its layers as far as they fit
    freeze: str = ""  # freeze its layers up to this block or layer, such as conv4
    teachers: Sequence[Network] = ()  # train on the scores of these networks instead of labels
    matched: tuple[str, ...] = ()  # values in which the student is trained to equal the first teacher
    cache: Path | None = None  # folder for values of frozen layers and teachers; by default in the run's folder
    micro_batch: int = 0  # largest number of images that a device computes at once; 0: its whole part of a batch
    seed: int = 0
    device: str = "cpu"
    workers: int | None = None  # number of threads that load images; by default one for each core
    fresh: bool = False  # delete the run in the folder instead of resuming it
    save_seconds: float = 600.0  # between checkpoints within an epoch; each epoch ends with one
