"""The metadata in the files that vgg writes: all of a network besides its numbers, as text under a few keys.

It is in `metadata_props` of an ONNX file and in `__metadata__` of a safetensors file, so that the file alone is enough to
classify correctly.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from .. import json_output
from ..architectures import Architecture
from ..arrays import Array
from ..errors import Error, ModelError
from ..labels import parse
from ..network import Network, Provenance
from ..parameters import LowRank, Parameter, Part, Quantized
from ..preprocessing import Preprocessing

ARCHITECTURE = "vgg.architecture"
PREPROCESSING = "vgg.preprocessing"
LABELS = "vgg.labels"
PROVENANCE = "vgg.provenance"
QUANTIZED = "vgg.quantized"
KEYS = "vgg.keys"
SHA256 = "vgg.parameters_sha256"

_RARE = ("assumed", "part")  # fields of the provenance that few networks have

T = TypeVar("T")


def describe(network: Network, expanded: Collection[str] = ()) -> dict[str, str]:
    """The metadata of a network, without the hash of its parameters, which the writer adds.

    Args:
        network: the network.
        expanded: names of quantized parameters that are floats in the file.
    """
    quantized = {
        name: {"axis": value.axis, "group": value.group}
        for name, value in network.parts().items()
        if isinstance(value, Quantized) and name not in expanded
    }
    text = {
        ARCHITECTURE: _json(described(network.architecture)),
        PREPROCESSING: _json(asdict(network.preprocessing)),
        PROVENANCE: _json({name: value for name, value in asdict(network.provenance).items() if value or name not in _RARE}),
    }
    if network.labels is not None:
        text[LABELS] = network.labels.text()
    if quantized:
        text[QUANTIZED] = _json(quantized)
    return text


def described(architecture: Architecture) -> dict[str, Any]:
    """The fields of an architecture, without those that few have and that have their default value."""
    plain = Architecture()
    return {
        name: value
        for name, value in asdict(architecture).items()
        if name not in ("channels", "last", "pooling") or value != getattr(plain, name)
    }


def build(path: object, text: Mapping[str, str], tensors: Mapping[str, Array]) -> Network:
    """The network with this metadata and these stored arrays. Raises ModelError if they don't fit together."""
    written = architecture(path, text)
    quantized = _parsed(path, QUANTIZED, text, dict) if QUANTIZED in text else {}
    parameters: dict[str, Parameter] = {}

    def part(name: str, *shape: int) -> Part:
        value = tensors[name].reshape(shape)
        if name not in quantized:
            if f"{name}.scale" in tensors and name.endswith(".weight"):
                raise ModelError(f"missing metadata entry {QUANTIZED!r}")
            return value
        return Quantized(value, tensors[f"{name}.scale"], tensors.get(f"{name}.zero_point"), **quantized[name])

    try:
        for name, shape in written.parameters.items():
            if f"{name}.left" in tensors:
                rank = tensors[f"{name}.left"].shape[1]
                parameters[name] = LowRank(part(f"{name}.left", shape[0], rank), part(f"{name}.right", rank, *shape[1:]))
            else:
                parameters[name] = part(name, *shape)
    except KeyError as error:
        raise ModelError(f"{path}: parameter {error.args[0]} of {written.name} is missing") from None
    except (ValueError, TypeError, IndexError):
        raise ModelError(f"{path}: parameter {name} has the wrong shape for {written.name}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return complete(path, text, written, parameters)


def is_whole(architecture: Architecture, tensors: Collection[str]) -> bool:
    """Whether each parameter of an architecture is among the stored arrays that `build` reads."""
    return all(name in tensors or {f"{name}.left", f"{name}.right"} <= set(tensors) for name in architecture.parameters)


def architecture(path: object, text: Mapping[str, str]) -> Architecture:
    """The architecture in the metadata."""
    return _parsed(path, ARCHITECTURE, text, lambda value: Architecture(**_tuples(value)))


def complete(path: object, text: Mapping[str, str], architecture: Architecture, parameters: Mapping[str, Parameter]) -> Network:
    """The network with these parameters and the rest of its metadata. Raises ModelError if they don't fit together."""
    preprocessing = _parsed(path, PREPROCESSING, text, lambda value: Preprocessing(**_tuples(value)))
    provenance = _parsed(path, PROVENANCE, text, lambda value: Provenance(**value))
    try:
        labels = parse(text[LABELS]) if LABELS in text else None
        return Network(architecture, parameters, preprocessing, labels, provenance)
    except Error as error:
        raise ModelError(f"{path}: {error}") from None


def _parsed(path: object, key: str, text: Mapping[str, str], make: Callable[[Any], T]) -> T:
    try:
        return make(json.loads(text[key]))
    except (KeyError, ValueError, TypeError, AttributeError, Error):
        raise ModelError(f"{path}: missing or damaged metadata entry {key!r}") from None


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in value.items()}


def _json(value: object) -> str:
    return json_output.dumps(value, sort_keys=True)
