"""The configuration of a Keras model as one list of layers in the order of execution.

Models may be nested. The layers of a `Sequential` are a list. Those of a functional model name the layers that they read, in
`inbound_nodes`: Keras 2 as [name, node, tensor, keyword arguments], Keras 3 as arguments that contain tensors,
{"class_name": "__keras_tensor__", "config": {"keras_history": [name, node, tensor]}}. A configuration is only read: classes
and functions are names in it, and code in it is never loaded.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError

MAX_BYTES = 2**21
_MAX_DEPTH = 8  # of models in models
_MODELS = ("Sequential", "Functional", "Model")
_PACKAGES = ("keras", "keras_core", "tf_keras", "tensorflow", "builtins")


@dataclass(frozen=True)
class KerasLayer:
    """A layer, or a function applied as a layer. Its configuration is as in the file, of any type."""

    kind: str  # its class, such as Conv2D; of an operation of TensorFlow, its function, such as nn.relu
    name: str
    config: dict[str, Any]
    names: tuple[str, ...] = ()  # of the models that contain it, from the outermost one, and its own
    path: str = ""  # of its arrays in the new layout, `layers/functional/layers/conv2d_1`
    arguments: tuple[Any, ...] = ()  # constants after the value that it reads
    keywords: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind[:80]} {self.name[:80]!r}"

    @property
    def plain(self) -> str:
        return plain(self.kind)


def plain(kind: str) -> str:
    """The name of a class or function without its module, in lower case and without underscores: `leakyrelu`."""
    return kind.rpartition(".")[2].replace("_", "").lower()


def layers(path: object, text: str) -> list[KerasLayer]:
    """The layers of a model.

    Args:
        path: the file, for errors.
        text: the configuration as JSON.

    Raises:
        ModelError: the model is no chain of layers; the message names the first layer that shows it.
        ValueError: the configuration is damaged or too long.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"its configuration has {len(text)} characters")
    return list(_model(path, json.loads(text), (), ""))


def _model(path: object, model: Any, names: tuple[str, ...], place: str) -> Iterator[KerasLayer]:
    """The layers of a model, those of the models in it included."""
    kind, config = str(model["class_name"]), model["config"]
    if kind not in _MODELS:
        raise ModelError(f"{path}: not a VGG network: unsupported model {kind[:80]}")
    if len(names) > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} models in each other")
    entries = config if isinstance(config, list) else config["layers"]  # Keras 2.2.2 and older
    if isinstance(config, dict) and config.get("build_input_shape"):
        yield KerasLayer("InputLayer", "input", {"batch_shape": config["build_input_shape"]}, (*names, "input"))
    if not entries:
        return
    places = _places(entries, place)
    inner = [_layer(entry, names, where) for entry, where in zip(entries, places, strict=True)]
    calls: Sequence[KerasLayer] = inner if kind == "Sequential" else _chain(path, inner, entries, config)
    for call in calls:
        if call.kind in _MODELS:
            yield from _model(path, {"class_name": call.kind, "config": call.config}, call.names, f"{call.path}/")
        else:
            yield call


def _layer(entry: Any, names: tuple[str, ...], place: str) -> KerasLayer:
    config = entry["config"]
    if not isinstance(config, dict):
        config = {"layers": config}  # a Sequential of Keras 2.2.2 and older
    kind, name = str(entry["class_name"]).replace(".", ":"), str(entry.get("name") or config.get("name", ""))
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        kind = str(config["function"])
    if str(entry.get("module") or "keras").split(".")[0] not in _PACKAGES:
        kind = f"{entry['module']}:{kind}"  # a class of the user's with a name of Keras's
    return KerasLayer(kind, name, config, (*names, name), place)


def _places(entries: Any, place: str) -> list[str]:
    """The groups of layers in the new layout: the class in snake case, numbered from the second layer of a class on."""
    count: Counter[str] = Counter()
    places = []
    for entry in entries:
        kind = re.sub(r"\W+", "", str(entry["class_name"]))
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        places.append(f"{place}layers/{kind}" + (f"_{count[kind]}" if count[kind] else ""))
        count[kind] += 1
    return places


def _chain(path: object, inner: list[KerasLayer], entries: Any, config: dict[str, Any]) -> list[KerasLayer]:
    """The calls of a functional model in order, which must be a chain from its only input to its output."""

    def error(message: str) -> ModelError:
        return ModelError(f"{path}: not a VGG network: {message}")

    inputs, outputs = _ends(config["input_layers"]), _ends(config["output_layers"])
    if len(inputs) != 1 or not outputs:
        raise error(f"it has the inputs {', '.join(inputs)[:200]}")
    value, calls = "", []
    done: set[str] = set()
    channels: dict[str, int] = {}  # single channels of the value by name
    for layer, entry in zip(inner, entries, strict=True):
        nodes = entry.get("inbound_nodes") or []
        if layer.name == inputs[0] and not nodes:
            value = layer.name
            calls.append(layer)
            continue
        if len(nodes) != 1:
            raise error(f"{layer} is called {len(nodes)} times")
        read, arguments, keywords = _call(nodes[0])
        call = KerasLayer(layer.kind, layer.name, layer.config, layer.names, layer.path, arguments, keywords)
        channel = _channel(call)
        if channel is not None and read == [value]:
            channels[layer.name] = channel
            continue
        if layer.kind == "Stack" and read and {*read} <= {*channels}:
            order = [channels[name] for name in read]
            if layer.config.get("axis") != -1:
                raise error(f"unsupported layer {layer}")
            call = KerasLayer("channels", layer.name, {"order": order}, layer.names)
        elif read != [value]:
            raise error(f"the graph branches at {layer}")
        calls.append(call)
        value, channels = layer.name, {}
        done.add(value)
    if value not in outputs or channels or not {*outputs} <= done:
        raise error(f"its output {', '.join(outputs)[:200]} is not computed by a chain of layers")
    return calls


def _ends(places: Any) -> list[str]:
    """The names in `input_layers` or `output_layers`: [name, 0, 0], or a list or dictionary of these."""
    if isinstance(places, dict):
        places = list(places.values())
    if not isinstance(places, list):
        raise ValueError("it has no input or output")
    if len(places) == 3 and isinstance(places[0], str):
        places = [places]
    return [str(name) for name, _, _ in places]


def _call(node: Any) -> tuple[list[str], tuple[Any, ...], dict[str, Any]]:
    """What a layer reads: names of layers, and the constants among its arguments. A constant may not precede the value."""
    read: list[str] = []
    if isinstance(node, dict):
        first, *others = node["args"]
        _tensors(first, read)
        if not read:  # 1 - x
            return [], (), {}
        keywords = {key: _tensors(value, read) for key, value in node["kwargs"].items()}
        return read, tuple(_tensors(argument, read) for argument in others), keywords
    tensors = [node] if node and isinstance(node[0], str) else node
    keywords = {}
    for name, _, _, *rest in tensors:
        read.append(str(name))
        keywords |= rest[0] if rest else {}
    # Among the keyword arguments of TensorFlow's operations there may be values too.
    read += [value[0] for value in keywords.values() if isinstance(value, list) and value and isinstance(value[0], str)]
    return read, (), keywords


def _tensors(argument: Any, read: list[str]) -> Any:
    """An argument of Keras 3: adds the layers that it reads to `read`; the value of a constant."""
    if isinstance(argument, list):
        return [_tensors(one, read) for one in argument]
    if isinstance(argument, dict):
        if argument.get("class_name") == "__keras_tensor__":
            read.append(str(argument["config"]["keras_history"][0]))
            return None
        if argument.get("class_name") in ("__tensor__", "__numpy__"):
            return argument["config"]["value"]
    return argument


def _channel(call: KerasLayer) -> int | None:
    """The channel that an operation such as `x[..., 2]` takes; None of other operations."""
    if call.kind == "GetItem" and len(call.arguments) == 1 and isinstance(call.arguments[0], list):
        *before, last = call.arguments[0]
        if _all(before) and type(last) is int:
            return last
    return None


def _all(indices: list[Any]) -> bool:
    """Whether indices are `...`."""
    return len(indices) == 1 and isinstance(indices[0], dict) and indices[0].get("class_name") == "__ellipsis__"


def is_reversal(call: KerasLayer) -> bool:
    """Whether an operation is `x[..., ::-1]`."""
    indices = call.keywords.get("slice_spec", call.arguments[0] if call.arguments else None)
    if not isinstance(indices, list) or not indices or not _all(indices[:-1]) or not isinstance(indices[-1], dict):
        return False
    last = indices[-1].get("config", indices[-1])
    return [last.get("start"), last.get("stop"), last.get("step")] == [None, None, -1]
