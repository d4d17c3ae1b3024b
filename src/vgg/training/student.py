"""The network to train: its head, and its initial parameters."""

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .. import sources
from ..architectures import Architecture, Layer
from ..errors import Error
from ..heads import Output, parse
from ..labels import Labels
from ..module import Module
from ..network import Network
from ..parameters import Parameter
from ..preprocessing import PRESETS, Preprocessing
from ..sources import cifar
from .options import Options
from .recipes import SMALL

LEAST_VARIANCE = 0.005  # of a principal component of patches that becomes a filter, as a share of all
EPSILON = 5e-4  # added to the variances of patches, as in airbench


def output_of(options: Options) -> Output:
    """The output of the network to train. Raises Error if it is not that of the teachers."""
    teachers = {teacher.architecture.output or "softmax" for teacher in options.teachers}
    own = options.start.architecture.output if options.start else None
    output = parse(options.head).output if options.head else own or (min(teachers) if teachers else "softmax")
    if other := teachers - {output}:
        raise Error(f"the teachers' output is {' and '.join(sorted(other))}, the student's {output}; use --head")
    return output


def input_size(data: str | Path, given: int | None) -> int:
    """The input of a new network in pixels: the given one, or else 32 for CIFAR and 224 for other images."""
    return given or (cifar.SIDE if sources.is_cifar(data) else Architecture.input_size)


def create(
    options: Options, data: str, classes: int, labels: Labels | None, output: Output
) -> tuple[Module, Preprocessing, list[str]]:
    """The network to train, with its initial parameters; its preprocessing; and the layers not taken from `start` or `init`."""
    torch.manual_seed(options.seed)
    if options.start:
        network, preprocessing = options.start, options.start.preprocessing
        theirs = network.architecture
        kept_head = theirs.classifier is not None and not options.head
        head = theirs.head if kept_head else options.head or _usual_head(theirs, preprocessing.crop, output)
        size = theirs.input_size if kept_head else preprocessing.crop
        architecture = replace(theirs, classes=classes, head=head, input_size=size, last="")
        same = classes == theirs.classes and (labels == network.labels or labels is None)
        kept = kept_layers(architecture, theirs, last=same)
        module = Module(architecture, options.recipe.dropout)
        module.initialise(identity=options.recipe.filters != "random")
        module.load(network, kept)
        return module, preprocessing, _others(architecture, kept)
    size = input_size(data, options.size)
    plain = Architecture(options.arch, classes, options.width, size)
    module = Module(replace(plain, head=options.head or _usual_head(plain, size, output)), options.recipe.dropout)
    module.initialise(identity=options.recipe.filters != "random")
    copied = module.load_matching(options.init) if options.init else None
    preset = options.init.preprocessing if options.init else PRESETS["torchvision"]
    if size != preset.crop:
        preset = replace(preset, size=size if size <= SMALL else round(size * preset.size / preset.crop), crop=size)
    return module, preset, _others(module.architecture, copied) if copied else []


def _others(architecture: Architecture, known: Container[str]) -> list[str]:
    """The names of the layers with parameters that are not among the known ones."""
    return [layer.name for layer in architecture.layers if layer.parameters and layer.name not in known]


def whiten(module: Module, images: torch.Tensor) -> None:
    """Set the filters of a new network's first convolution, so that they whiten the patches of images.

    They are the principal components of the patches, each divided by its standard deviation: first those with at least
    LEAST_VARIANCE, in descending order, and then the same with the other sign, since a ReLU follows. All other filters stay as
    they are, and so does the norm of the changed ones together.

    Args:
        module: the network.
        images: float32 [images, 3, height, width], normalised; without any, nothing changes.
    """
    if not len(images):
        return
    first = next(layer for layer in module if isinstance(layer, nn.Conv2d))
    size = first.weight.shape[2:]
    patches = functional.unfold(images, size, stride=size).transpose(1, 2).flatten(0, 1)
    variances, components = torch.linalg.eigh(patches.double().T.cov())
    used = variances > max(LEAST_VARIANCE * float(variances.sum()), EPSILON)
    whitening = (components / (variances + EPSILON).sqrt()).T[used].flip(0)[: len(first.weight) // 2]
    filters = torch.cat([whitening, -whitening]).float().view(-1, *first.weight.shape[1:])
    with torch.no_grad():
        changed = first.weight[: len(filters)]
        changed.copy_(filters * (changed.norm() / filters.norm()))


def _usual_head(architecture: Architecture, size: int, output: Output) -> str:
    """The head of a new network, or of one that has none."""
    head = replace(architecture, classes=1, head="gap" if size <= SMALL else "fc", last="").classifier
    assert head is not None
    return replace(head, output=output).text


def kept_layers(ours: Architecture, theirs: Architecture, *, last: bool) -> dict[str, str]:
    """The layers of a network that another one has too, each with its name there.

    Of the trunk, they are those with the same name; of the head, those in order up to the first difference. The last linear
    layer is one of them only if `last`.
    """

    def split(architecture: Architecture) -> tuple[dict[str, Layer], list[Layer]]:
        layers = [layer for layer in architecture.layers if layer.parameters]
        return {one.name: one for one in layers if "_" in one.name}, [one for one in layers if "_" not in one.name]

    def equal(one: Layer, other: Layer) -> bool:
        return (one.operation, one.parameters) == (other.operation, other.parameters)

    (trunk, head), (their_trunk, their_head) = split(ours), split(theirs)
    kept = {name: name for name, one in trunk.items() if name in their_trunk and equal(one, their_trunk[name])}
    for one, other in zip(head, their_head, strict=False):
        if not equal(one, other) or (one is head[-1] and not (last and other is their_head[-1])):
            break
        kept[one.name] = other.name
    return kept


def origin(start: Network | None, module: Module, preprocessing: Preprocessing) -> Network | None:
    """The network that computes the outputs of frozen layers; in another head than that of `start`, its new layers are 0."""
    architecture = module.architecture
    if not start or start.architecture.head == architecture.head:
        return start
    kept = kept_layers(architecture, start.architecture, last=False)
    parameters: dict[str, Parameter] = {}
    for name, shape in architecture.parameters.items():
        layer, _, role = name.partition(".")
        known = f"{kept.get(layer)}.{role}"
        parameters[name] = start.parameters[known] if layer in kept else np.zeros(shape, np.float32)
    return Network(architecture, parameters, preprocessing)
