"""From the layers of a Keras model to the paper's layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..architectures import POOLINGS
from ..arrays import Array
from ..errors import ModelError
from ..parameters import expanded
from .chain import Chain
from .keras_config import KerasLayer, plain
from .keras_front import Front
from .keras_store import Store
from .layouts import Bare, Found

EPSILON = 1e-3  # of batch normalisation, if the configuration has none
BLOCKS = 5  # of convolutions, each followed by a pooling
# Layers and operations that change nothing at inference, by their plain names.
_UNCHANGING = frozenset((
    "activityregularization", "alphadropout", "augmix", "cast", "cutmix", "gaussiandropout", "gaussiannoise", "identity",
    "inputlayer", "mixup", "randaugment", "randombrightness", "randomcolordegeneration", "randomcolorjitter", "randomcontrast",
    "randomelastictransform", "randomerasing", "randomflip", "randomgaussianblur", "randomgrayscale", "randomheight",
    "randomhue", "randominvert", "randomperspective", "randomposterization", "randomrotation", "randomsaturation",
    "randomsharpness", "randomshear", "randomtranslation", "randomwidth", "randomzoom", "spatialdropout2d",
))  # fmt: skip
# Activations by the plain names of functions, layers and operations.
_ACTIVATIONS = {
    "relu": "relu", "leakyrelu": "leaky_relu", "elu": "elu", "gelu": "gelu", "silu": "silu", "swish": "silu", "tanh": "tanh",
    "sigmoid": "sigmoid", "softmax": "softmax", "softmaxv2": "softmax", "logsoftmax": "log_softmax",
    "logsoftmaxv2": "log_softmax",
}  # fmt: skip
NORM_ROLES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "variance"}


def read(path: object, layers: Sequence[KerasLayer], store: Store) -> Bare:
    """The network of a model, with the preprocessing that its first layers are."""
    model = _Model(path, layers, store)
    for layer in layers:
        model.visit(layer)
    assumed = [model.front.assumed, model.without_pooling()]
    architecture, parameters, _ = model.network()
    preprocessing = model.front.preprocessing(architecture.input_size)
    return Bare(architecture, parameters, preprocessing, assumed=" and ".join(filter(None, (*assumed, *model.assumed))))


class _Model(Chain):
    """The layers so far."""

    def __init__(self, path: object, layers: Sequence[KerasLayer], store: Store) -> None:
        super().__init__(path)
        formats = [layer.config.get("data_format") for layer in layers if layer.kind == "Conv2D"]
        self._first = bool(formats) and formats[0] == "channels_first"  # the axis of channels
        self._store = store
        self.front = Front(path, store, not self._first)
        self._side = 0  # of the map in positions, 0 if it is not known
        self._flat = False
        self._padded = False  # one pixel of zeros is around the map, which the next convolution then needn't add
        self._held: tuple[dict[str, Found], float] | None = None  # the batch normalisation of the last map

    def visit(self, layer: KerasLayer) -> None:
        """Append a layer. Raises ModelError if it doesn't fit."""
        if not self.count("convolution"):
            if layer.config.get("batch_input_shape"):  # of the first layer of a Sequential too
                self.front.on_inputlayer(layer)
            if self.front.visit(layer):
                return
        if self._padded and layer.kind != "Conv2D":
            raise self._unsupported(layer, "it follows ZeroPadding2D")
        step = getattr(self, f"on_{layer.plain}", None)
        if step is not None:
            step(layer)
        elif layer.plain in _ACTIVATIONS:
            self._activate(layer, layer.kind.rpartition(".")[2], {**layer.config, **layer.keywords})
        elif layer.plain not in _UNCHANGING:
            raise self._unsupported(layer)

    def without_pooling(self) -> str:
        """Leave out a pooling that ends a network without linear layers; what was left out."""
        if not self.count("linear"):
            if self._held:
                raise self.error("it ends in a batch normalisation")
            if self.ends_in(*POOLINGS):
                return f"a backbone without the {self.operations.pop().operation.replace('_', ' ')} after its last layer"
        return ""

    def _unsupported(self, layer: KerasLayer, why: str = "") -> ModelError:
        return self.front.unsupported(layer, why)

    def add(self, operation: str, number: float | None = 0.0) -> None:
        if self.ends_in("softmax", "log_softmax"):
            raise self.error(f"{operation} follows {self.operations[-1].operation}, which ends a network")
        super().add(operation, number)

    def _check_axis(self, layer: KerasLayer) -> None:
        given = layer.config.get("data_format")
        if given and (given == "channels_first") != self._first and self._side != 1:
            raise self._unsupported(layer, f"its data_format is {given!r:.40}, unlike that of the first convolution")

    # One method per class of layer or operation: `on_` and its plain name.

    def on_lambda(self, layer: KerasLayer) -> None:
        raise self._unsupported(layer, "it is code, which is never run; use Rescaling, Normalization or another layer for it")

    def on_conv2d(self, layer: KerasLayer) -> None:
        self._check_axis(layer)
        for key in ("strides", "dilation_rate", "groups"):
            if np.any(np.asarray(layer.config.get(key, 1)) != 1):
                raise self._unsupported(layer, f"its {key} is {layer.config[key]!r:.80}")
        key, kernel, bias = self._weights(layer)
        if kernel.ndim != 4:
            raise self._unsupported(layer, f"its kernel has the shape {list(kernel.shape)}")
        size = kernel.shape[2:]
        padding = layer.config.get("padding", "valid")
        if self.count("max_pool") < BLOCKS:
            if self._padded if padding == "same" else size != ((3, 3) if self._padded else (1, 1)):
                raise self._unsupported(layer, f"its padding is {padding!r:.40}")
            self._padded = False
            if not self.count("convolution"):
                self._side = self.input_size = self.front.side
            self.convolution(key, kernel, bias)
        else:  # linear layers as convolutions, the first one over the whole map
            if not self._side:
                self._side, self.input_size = size[0], size[0] * 2**BLOCKS
            if size != (self._side, self._side) or (padding == "same" and size != (1, 1)):
                raise self._unsupported(layer, f"its kernel of {size[0]}x{size[1]} is not as large as the map, {self._side}")
            self._release(self._side**2)
            self.linear(key, kernel.reshape(len(kernel), -1), bias)
            self._side = 1
        self._activate(layer, layer.config.get("activation"), {})

    def on_zeropadding2d(self, layer: KerasLayer) -> None:
        self._check_axis(layer)
        if np.any(np.asarray(layer.config["padding"]) != 1) or self.count("max_pool") == BLOCKS:
            raise self._unsupported(layer, f"its padding is {layer.config['padding']!r:.80}")
        self._padded = True

    def on_dense(self, layer: KerasLayer) -> None:
        key, kernel, bias = self._weights(layer)
        if not self._flat and (self._side != 1 or self._first):
            raise self._unsupported(layer, "it reads a map; a linear layer follows Flatten or a pooling")
        if self._held:
            self._release(kernel.shape[-1] // self._held[0]["mean"].value.shape[0])
        self.linear(key, kernel, bias)
        self._side = 1
        self._activate(layer, layer.config.get("activation"), {})

    def _weights(self, layer: KerasLayer) -> tuple[str, Array, Array | None]:
        """The name of a layer's kernel in the file, the kernel, and the bias if the layer has one."""
        biased = bool(layer.config.get("use_bias", True))
        found = self._store.arrays(layer, ("kernel", "bias") if biased else ("kernel",))
        return found["kernel"].key, expanded(found["kernel"].value), expanded(found["bias"].value) if biased else None

    def on_batchnormalization(self, layer: KerasLayer) -> None:
        axis = layer.config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if axis not in ((1, -1) if self._flat else (1, -3) if self._first else (3, -1)):
            raise self._unsupported(layer, f"its axis is {axis!r:.40}")
        present = {"gamma": layer.config.get("scale", True), "beta": layer.config.get("center", True)}
        arrays = self._store.arrays(layer, [role for role in NORM_ROLES if present.get(role, True)])
        count = arrays["moving_mean"].value.shape
        neutral = {"gamma": np.ones(count, np.float32), "beta": np.zeros(count, np.float32)}
        roles = {ours: arrays.get(role) or Found(f"{layer.name}/{role}", neutral[role]) for role, ours in NORM_ROLES.items()}
        norm = roles, float(layer.config.get("epsilon", EPSILON))
        if self._flat or self._side == 1 or self.count("max_pool") < BLOCKS:
            self.batch_norm(*norm)
        elif self._held:
            raise self._unsupported(layer, "two batch normalisations follow each other")
        else:
            self._held = norm

    def _release(self, positions: int) -> None:
        """Append the batch normalisation of a map as one of its elements, after a pooling or flattening."""
        if self._held:
            (roles, epsilon), self._held = self._held, None
            spread = np.tile if self.channels_last else np.repeat
            self.batch_norm(
                {role: Found(one.key, spread(expanded(one.value), positions)) for role, one in roles.items()}, epsilon
            )

    def on_maxpooling2d(self, layer: KerasLayer) -> None:
        self._pool2d(layer, "global_max_pool")

    def on_averagepooling2d(self, layer: KerasLayer) -> None:
        self._pool2d(layer, "average_pool")

    def _pool2d(self, layer: KerasLayer, operation: str) -> None:
        self._check_axis(layer)
        size = layer.config["pool_size"]
        size, strides = ({*np.ravel(one).tolist()} for one in (size, layer.config.get("strides") or size))
        side, even = max(size), self._side and self._side % 2 == 0
        if operation == "global_max_pool" and self.count("max_pool") < BLOCKS:
            if size != {2} or strides != {2} or (layer.config.get("padding") == "same" and not even):
                raise self._unsupported(layer, "it doesn't halve the map")
            self.add("max_pool")
            self._side //= 2
        elif len(size) == 1 and self._side == side:
            self._pool(layer, operation)
        elif operation == "average_pool" and len(size) == 1 and strides == size and self._side and self._side % side == 0:
            self._pool(layer, "adaptive_pool", self._side // side)
        else:
            raise self._unsupported(layer, f"it pools {side} of {self._side or 'an unknown number of'} positions along a side")

    def on_globalaveragepooling2d(self, layer: KerasLayer) -> None:
        self._global(layer, "average_pool", layer.config.get("keepdims"))

    def on_globalmaxpooling2d(self, layer: KerasLayer) -> None:
        self._global(layer, "global_max_pool", layer.config.get("keepdims"))

    def on_mean(self, layer: KerasLayer) -> None:
        self._reduce(layer, "average_pool")

    on_reducemean = on_mean

    def on_max(self, layer: KerasLayer) -> None:
        self._reduce(layer, "global_max_pool")

    on_reducemax = on_max

    def _reduce(self, layer: KerasLayer, operation: str) -> None:
        options = {**layer.config, **layer.keywords}
        if self._flat or {axis % 4 for axis in options.get("axis") or ()} != ({2, 3} if self._first else {1, 2}):
            raise self._unsupported(layer, f"its axis is {options.get('axis')!r:.40}")
        self._global(layer, operation, options.get("keepdims"))

    def _global(self, layer: KerasLayer, operation: str, keeps: Any) -> None:
        self._check_axis(layer)
        if not self.count("linear") and not self.ends_in(*POOLINGS):  # otherwise there is one position
            self._pool(layer, operation)
        self._flat = not keeps

    def _pool(self, layer: KerasLayer, operation: str, side: int = 1) -> None:
        if self._held and operation == "global_max_pool" and (expanded(self._held[0]["scale"].value) < 0).any():
            raise self._unsupported(layer, "it follows a batch normalisation with negative factors")
        self.add(operation, side)
        self._side = side
        if side == 1:
            self._release(1)

    def on_flatten(self, layer: KerasLayer) -> None:
        given = layer.config.get("data_format") == "channels_first"  # which it moves to the end
        if given and not self._first and self._side != 1:
            raise self._unsupported(layer, "its data_format is unlike that of the first convolution")
        self._flatten(given or not self._first)

    def on_reshape(self, layer: KerasLayer) -> None:
        shape = layer.config["target_shape"] if "target_shape" in layer.config else layer.config["newshape"][1:]
        single = self._flat or self._side == 1
        if len(shape) == 1:
            self._flatten(not self._first)
        elif single and not self._first and {*shape[:-1]} == {1}:
            self._flat = False
        else:
            raise self._unsupported(layer, f"its shape is {shape!r:.80}")

    def _flatten(self, channels_last: bool) -> None:
        if not self._flat and not self.count("linear"):
            self.channels_last = channels_last
        self._flat = True

    def on_dropout(self, layer: KerasLayer) -> None:
        if self._flat and layer.config.get("rate"):
            self.add("dropout", float(layer.config["rate"]))

    def on_activation(self, layer: KerasLayer) -> None:
        self._activate(layer, layer.config["activation"], {})

    def _activate(self, layer: KerasLayer, activation: Any, options: dict[str, Any]) -> None:
        """Append an activation: the name of a function, or the configuration of a function or layer."""
        if activation in (None, "linear"):
            return
        if isinstance(activation, dict):
            name, inner = activation.get("class_name"), activation.get("config")
            activation, options = (name, inner) if isinstance(inner, dict) else (inner if name == "function" else name, {})
            if activation == "linear":
                return
        operation = _ACTIVATIONS.get(plain(activation)) if isinstance(activation, str) else None
        if operation is None or self._held or options.get("max_value") is not None or options.get("threshold"):
            raise self._unsupported(layer, f"its activation is {activation!r:.80}")
        slope = options.get("negative_slope", options.get("alpha"))
        if operation == "relu" and slope:
            operation = "leaky_relu"
        # The defaults of LeakyReLU, of the function, and of ELU.
        implied = 1.0 if operation == "elu" else 0.3 if activation == "LeakyReLU" else 0.2
        number = round(float(implied if slope is None else slope), 7)  # of a float32
        if operation == "gelu" and options.get("approximate"):
            operation = "gelu_tanh"
        if options.get("axis", -1) not in (-1, 1 if self._flat else 3):
            raise self._unsupported(layer, f"its axis is {options['axis']!r:.40}")
        self.add(operation, number if operation in ("leaky_relu", "elu") else 0.0)
