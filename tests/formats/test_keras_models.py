"""Models as people make them of VGG in Keras, saved by Keras itself; its own output is the reference."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import io
import json
import re
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgg import ModelError, Network, engines
from vgg.predictions import scores

keras = pytest.importorskip("keras", reason="keras, which writes the files, is not installed")
L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 64, 64, 3)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (64, 64, 3), np.uint8)
DEPTHS, WIDTHS = (2, 2, 3, 3, 3), (4, 8, 16, 32, 32)


def block(x, number: int, depth: int, width: int, norm: bool = False, data_format: str = "channels_last"):
    for index in range(1, depth + 1):
        options = {"kernel_initializer": "he_normal", "bias_initializer": "random_normal", "data_format": data_format}
        x = L.Conv2D(
            width, 3, padding="same", activation=None if norm else "relu", name=f"block{number}_conv{index}", **options
        )(x)
        if norm:
            axis = 1 if data_format == "channels_first" else -1
            x = L.ReLU()(L.BatchNormalization(axis=axis, epsilon=1e-3 * index)(x))
    return L.MaxPooling2D(2, name=f"block{number}_pool", data_format=data_format)(x)


def trunk(size=64, widths=WIDTHS, inputs=None, **options):
    """VGG16(include_top=False), narrow."""
    x = i = keras.Input((size, size, 3)) if inputs is None else inputs
    for number, (depth, width) in enumerate(zip(DEPTHS, widths, strict=True), 1):
        x = block(x, number, depth, width, **options)
    return keras.Model(i, x, name="vgg16")


def randomised(model):
    """The model with random statistics, scales and biases, instead of zeros and ones."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1:
            low = 0.5 if weight.name in ("gamma", "moving_variance") else -0.2
            weight.assign(rng.uniform(low, low + (1 if low > 0 else 0.4), weight.shape))
    return model


def stacked(*layers, **options):
    return keras.Sequential([trunk(**options), *layers])


def called(*layers, inputs=None, before=()):
    x = i = keras.Input((64, 64, 3)) if inputs is None else inputs
    for layer in before:
        x = layer(x)
    x = trunk()(x)
    for layer in layers:
        x = layer(x)
    return keras.Model(i, x)


def continued(*layers, **options):
    """A functional model whose layers are all its own."""
    base = trunk(**options)
    x = base.output
    for layer in layers:
        x = layer(x)
    return keras.Model(base.input, x)


def listed():
    model = keras.Sequential([keras.Input((64, 64, 3))])
    for layer in trunk().layers[1:]:
        model.add(layer)
    model.add(L.Flatten())
    model.add(L.Dense(3, activation="softmax"))
    return model


def outputs():
    base = trunk()
    return keras.Model(base.input, [base.get_layer("block3_conv3").output, base.get_layer("block4_conv2").output])


def frozen(model):
    """A nested model of which only the last block is trained."""
    for layer in model.layers[0].layers[:-4]:
        layer.trainable = False
    return model


def half():
    keras.config.set_dtype_policy("float16")
    try:
        model = stacked(L.Flatten(), DENSE(9, activation="relu"), DENSE(3))
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def saved(model, path):
    """The model's file, and the network in it with the notices given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path) if path.suffix == ".keras" or not path.name.endswith(".weights.h5") else model.save_weights(path)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        network = Network.read(path)
    return network, " ".join(str(notice.message) for notice in notices)


def padded():
    """As in 2015: padding in layers of its own."""
    x = i = keras.Input((64, 64, 3))
    for depth, width in zip(DEPTHS, WIDTHS, strict=True):
        for _ in range(depth):
            x = L.Conv2D(width, 3, activation="relu")(L.ZeroPadding2D((1, 1))(x))
        x = L.MaxPooling2D((2, 2), strides=(2, 2))(x)
    return keras.Model(i, L.Dense(3)(L.Flatten()(x)))


DENSE = L.Dense
SOFTMAX = {"units": 3, "activation": "softmax"}
# Each model by a function, with the text of its head. The last part of the text is the output's meaning.
MODELS = {
    "nested": (lambda: stacked(L.Flatten(), DENSE(64, activation="relu"), L.Dropout(0.5), DENSE(**SOFTMAX)),
               "64 relu dropout 0.5, classes"),
    "functional": (lambda: called(L.GlobalAveragePooling2D(), DENSE(**SOFTMAX)), "gap"),
    "nested deeper": (lambda: keras.Sequential([keras.Sequential([keras.Input((64, 64, 3)), trunk()]),
                                                keras.Sequential([L.Flatten(), DENSE(8, activation="tanh")]), DENSE(3)]),
                      "8 tanh, classes"),
    "frozen": (lambda: frozen(stacked(L.GlobalMaxPooling2D(), DENSE(5, activation="sigmoid"))), "max, classes sigmoid"),
    "binary": (lambda: continued(L.GlobalMaxPooling2D(), DENSE(1, activation="sigmoid")), "max, classes binary"),
    "one logit": (lambda: continued(L.Flatten(), DENSE(1)), "classes binary"),
    "separate activations": (lambda: stacked(L.Flatten(), DENSE(16), L.Activation("relu"), L.GaussianNoise(0.1), DENSE(9),
                                             L.ReLU(), DENSE(3), L.Softmax()),
                             "16 relu, 9 relu, classes"),
    "leaky": (lambda: stacked(L.Flatten(), DENSE(9), L.LeakyReLU(), DENSE(9, activation="leaky_relu"),
                              DENSE(9, activation=L.LeakyReLU(negative_slope=0.05)), DENSE(9), L.ReLU(negative_slope=0.1),
                              DENSE(3)),
              "9 leaky-relu 0.3, 9 leaky-relu 0.2, 9 leaky-relu 0.05, 9 leaky-relu 0.1, classes"),
    "smooth": (lambda: stacked(L.GlobalAveragePooling2D(), DENSE(9, activation="gelu"), DENSE(9, activation="swish"),
                               DENSE(9, activation="elu"), DENSE(9), L.ELU(0.5), DENSE(3, activation="log_softmax")),
               "average, 9 gelu, 9 silu, 9 elu, 9 elu 0.5, classes"),
    "operations": (lambda: called(lambda x: keras.ops.mean(x, axis=[1, 2]), DENSE(9), keras.ops.gelu, DENSE(9),
                                  keras.activations.gelu, DENSE(9), keras.ops.relu, DENSE(3), keras.ops.softmax),
                   "average, 9 gelu-tanh, 9 gelu, 9 relu, classes"),
    "norms": (lambda: stacked(L.GlobalAveragePooling2D(), DENSE(16, use_bias=False), L.BatchNormalization(), L.ReLU(),
                              DENSE(9, activation="relu"), L.BatchNormalization(epsilon=0.1, scale=False), L.Dropout(0.3),
                              DENSE(**SOFTMAX), norm=True),
              "average, 16 batch-norm relu, 9 relu batch-norm dropout 0.3, classes"),
    "norm of the map": (lambda: stacked(L.BatchNormalization(), L.Flatten(), DENSE(9, activation="relu"), DENSE(3)),
                        "flatten batch-norm, 9 relu, classes"),
    "norm before a pooling": (lambda: stacked(L.BatchNormalization(), L.GlobalMaxPooling2D(), DENSE(3)),
                              "max batch-norm, classes"),
    "norm of the elements": (lambda: stacked(L.Flatten(), L.BatchNormalization(center=False), L.Dropout(0.2), DENSE(3)),
                             "flatten batch-norm dropout 0.2, classes"),
    "norm in a head of VGG with norms": (lambda: stacked(L.Flatten(), L.BatchNormalization(), DENSE(3), norm=True),
                                         "flatten batch-norm, classes"),
    "whole pooling": (lambda: stacked(L.AveragePooling2D((2, 2)), L.Flatten(), DENSE(3)), "gap"),
    "whole maximum": (lambda: stacked(L.MaxPooling2D((2, 2)), L.Flatten(), DENSE(3)), "max, classes"),
    "kept dimensions": (lambda: stacked(L.GlobalAveragePooling2D(keepdims=True), DENSE(9, activation="relu"), L.Flatten(),
                                        DENSE(3)), "average, 9 relu, classes"),
    "reshaped": (lambda: stacked(L.Reshape((-1,)), DENSE(3)), "classes"),
    "convolutions": (lambda: stacked(L.Conv2D(9, 2, activation="relu"), L.Dropout(0.5), L.Conv2D(3, 1), L.Flatten(),
                                     L.Softmax()), "9 relu, classes"),
    "any size": (lambda: continued(L.GlobalAveragePooling2D(), DENSE(3), size=None), "gap"),
    "listed": (listed, "classes"),
    "padded": (padded, "classes"),
    "pruned": (lambda: stacked(L.Flatten(), DENSE(3), widths=(3, 5, 7, 11, 13)), "classes"),
    "backbone": (trunk, "none"),
    "outputs": (outputs, "none"),
    "half precision": (half, "9 relu, classes"),
}  # fmt: skip


def answer(model, images) -> np.ndarray:
    """Keras's own output at inference, the last one of several."""
    value = model(images, training=False)
    return np.asarray(keras.ops.convert_to_numpy(value[-1] if isinstance(value, list | tuple) else value), np.float32)


def compare(network, images, expected, tolerance=1e-4, activation=""):
    """Hold a network's output for images [batch, 3, height, width] against Keras's, after this activation."""
    opened = engines.open(network, "onnxruntime")
    value = network.architecture.values[-1]
    found = opened.run(images, [value])[value]
    if found.ndim == 4:
        found = found.transpose(0, 2, 3, 1)
    if activation:
        found = scores(found, network.architecture.output)[:, -expected.shape[1] :]
        found = np.log(found) if activation == "log_softmax" else found
    assert np.ptp(expected) > 1e-3  # so that an error would be seen
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def last_activation(model) -> str:
    """The name of the activation that ends a model, if it is an output."""
    layer = model.layers[-1]
    name = layer.name if isinstance(layer, L.Softmax) else getattr(getattr(layer, "activation", None), "__name__", "")
    return name if name.startswith(("softmax", "sigmoid", "log_softmax")) else ""


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_what_keras_gives(tmp_path, name):
    make, head = MODELS[name]
    keras.utils.set_random_seed(0)
    model = randomised(make())
    activation = "softmax" if name == "operations" else last_activation(model)
    tolerance = 1e-2 if name == "half precision" else 1e-4
    expected = answer(model, IMAGES)
    for suffix in (".keras", ".h5"):
        network, notices = saved(model, tmp_path / f"n{suffix}")
        assert network.architecture.head == head
        assert ("assumed one logit for two classes" in notices) == ("assumed" in notices) == (name == "one logit")
        compare(network, IMAGES.transpose(0, 3, 1, 2), expected, tolerance, activation=activation)


@pytest.mark.parametrize("head", [L.Flatten, L.GlobalAveragePooling2D])
def test_channels_first(tmp_path, head):
    inputs = keras.Input((3, 64, 64))
    options = {"data_format": "channels_first"}
    model = randomised(stacked(head(**options), DENSE(5, activation="relu"), DENSE(3), inputs=inputs, norm=True, **options))
    network, _ = saved(model, tmp_path / "n.keras")
    images = IMAGES.transpose(0, 3, 1, 2)
    compare(network, images, answer(model, images))
    flat = stacked(L.Flatten(data_format="channels_last"), DENSE(3), inputs=inputs, **options)  # which moves nothing
    compare(saved(flat, tmp_path / "flat.keras")[0], images, answer(flat, images))


def test_a_part_of_the_map_is_pooled(tmp_path):
    model = stacked(L.AveragePooling2D(2), L.Flatten(), DENSE(3), size=128)
    network, _ = saved(model, tmp_path / "n.keras")
    assert network.architecture.head == "average 2, classes"
    images = RNG.normal(size=(1, 128, 128, 3)).astype(np.float32)
    compare(network, images.transpose(0, 3, 1, 2), answer(model, images))


def test_a_pooling_at_the_end_is_left_out_and_that_is_stated(tmp_path):
    model = continued(L.GlobalAveragePooling2D())
    network, notices = saved(model, tmp_path / "n.keras")
    assert "assumed a backbone without the average pool after its last layer" in notices
    compare(network, IMAGES.transpose(0, 3, 1, 2), answer(trunk_of(model), IMAGES))


def trunk_of(model):
    return keras.Model(model.input, model.get_layer("block5_pool").output)


def adapted():
    layer = L.Normalization()
    layer.adapt(RNG.integers(0, 256, (9, 8, 8, 3)).astype(np.float32))
    return layer


VGG = keras.applications.vgg16.preprocess_input
AUGMENTED = keras.Sequential([L.RandomFlip("horizontal"), L.RandomRotation(0.1), L.RandomZoom(0.2), L.RandomContrast(0.1)])
IMAGENET = {"mean": [0.485, 0.456, 0.406], "variance": [0.229**2, 0.224**2, 0.225**2]}
FRONTS = {
    "scaled to -1": [L.Rescaling(1 / 127.5, offset=-1)],
    "scaled by channel": [L.Rescaling([0.01, 0.02, 0.03], offset=[-1, 0, 1])],
    "ImageNet's": [L.Rescaling(1 / 255), L.Normalization(**IMAGENET)],
    "adapted": [adapted()],
    "augmented": [AUGMENTED, L.Rescaling(1 / 255)],
    "VGG's": [VGG],
    "augmented, VGG's": [L.RandomFlip(), VGG],
    "reversed": [lambda x: keras.ops.flip(x, -1), lambda x: x - np.array([103.9, 116.8, 123.7], "float32"), L.Rescaling(0.017)],
    "arithmetic": [lambda x: x / 255.0, lambda x: (x - 0.5) * 2, lambda x: x + 0.1],
    "twice": [L.Rescaling(1 / 255), L.Normalization(**IMAGENET), L.Rescaling(2, offset=0.5), lambda x: keras.ops.flip(x, -1)],
}


@pytest.mark.parametrize("name", FRONTS)
def test_layers_in_front_are_the_preprocessing(tmp_path, name):
    keras.utils.set_random_seed(0)
    model = called(L.GlobalAveragePooling2D(), DENSE(4), before=FRONTS[name])
    for suffix in (".keras", ".h5"):
        network, notices = saved(model, tmp_path / f"n{suffix}")
        assert "preprocessing" not in notices
        found = network.preprocessing
        assert (found.name, found.resize, found.size, found.crop) == ("keras", "squash", 64, 64)
        compare(network, found(PIXELS)[None], answer(model, PIXELS[None].astype(np.float32)))


@pytest.mark.parametrize(
    ("front", "size", "crop"), [([L.Resizing(64, 64)], 64, 64), ([L.Resizing(80, 80), L.CenterCrop(64, 64)], 80, 64)]
)
def test_images_are_resized_as_the_model_does(tmp_path, front, size, crop):
    inputs = keras.Input((None, None, 3))
    model = called(L.Flatten(), DENSE(4), inputs=inputs, before=[*front, L.Rescaling(1 / 255)])
    network, _ = saved(model, tmp_path / "n.keras")
    assert (network.preprocessing.size, network.preprocessing.crop, network.architecture.input_size) == (size, crop, 64)
    other = RNG.integers(0, 256, (90, 120, 3), np.uint8)
    compare(network, network.preprocessing(other)[None], answer(model, other[None].astype(np.float32)))


def test_pixels_of_another_range_are_stated(tmp_path):
    network, notices = saved(called(L.Flatten(), DENSE(4), before=[L.Normalization(**IMAGENET)]), tmp_path / "n.keras")
    assert "assumed pixels of 0..1 in front of the normalisation, by its mean" in notices
    assert network.preprocessing.scale == pytest.approx(1 / 255)


class Unlike(L.Dense):
    def call(self, inputs):
        return super().call(inputs) * 2


class Copied(L.Layer):
    """A class with a name of Keras's."""

    def call(self, inputs):
        return inputs * 2


Copied.__name__ = "Dense"


def skip():
    base = trunk()
    y = L.Conv2D(32, 3, padding="same", name="left")(base.output)
    return keras.Model(base.input, DENSE(3)(L.Flatten()(L.Add(name="sum")([base.output, y]))))


def inception():
    base = trunk()
    y = [L.Conv2D(4, 3, padding="same", name=name)(base.output) for name in ("left", "right")]
    return keras.Model(base.input, L.Concatenate(name="joined")(y))


def attention():
    base = trunk()
    y = L.Reshape((4, 32))(base.output)
    return keras.Model(base.input, DENSE(3)(L.Flatten()(L.MultiHeadAttention(2, 4, name="heads")(y, y))))


def shared():
    base = trunk()
    layer = DENSE(9, name="shared")
    return keras.Model(base.input, layer(layer(DENSE(9)(L.Flatten()(base.output)))))


def inputs_two():
    base, more = trunk(), keras.Input((4,), name="more")
    return keras.Model([base.input, more], DENSE(3)(L.Concatenate()([L.Flatten()(base.output), more])))


NO_CHAINS = {
    "a skip connection": (skip, "the graph branches at Add 'sum'"),
    "branches": (inception, "the graph branches at Conv2D 'right'"),
    "attention": (attention, r"unsupported layer Reshape|the graph branches at MultiHeadAttention 'heads'"),
    "a layer called twice": (shared, "Dense 'shared' is called 2 times"),
    "two inputs": (inputs_two, "it has the inputs .*, more"),
    "an unknown activation": (lambda: stacked(L.Flatten(), DENSE(3, activation="selu", name="d")),
                              "unsupported layer Dense 'd': its activation is 'selu'"),
    "PReLU": (lambda: stacked(L.Flatten(), DENSE(3), L.PReLU(name="p"), DENSE(3)), "unsupported layer PReLU 'p'"),
    "ReLU6": (lambda: stacked(L.Flatten(), DENSE(3), L.ReLU(6.0, name="p"), DENSE(3)), "unsupported layer ReLU 'p'"),
    "a linear layer on the map": (lambda: stacked(DENSE(3, name="d"), L.GlobalAveragePooling2D()),
                                  "unsupported layer Dense 'd': it reads a map"),
    "a convolution on the map": (lambda: stacked(L.Conv2D(8, 1, name="c"), L.GlobalAveragePooling2D(), DENSE(3)),
                                 "unsupported layer Conv2D 'c': its kernel of 1x1 is not as large as the map, 2"),
    "a pooling of an unknown map": (lambda: stacked(L.AveragePooling2D(2, name="a"), L.GlobalAveragePooling2D(), DENSE(3),
                                                    size=None), "unsupported layer AveragePooling2D 'a'"),
    "softmax inside": (lambda: stacked(L.Flatten(), DENSE(8, activation="softmax"), DENSE(3)), "linear follows softmax"),
    "padding of a pooling": (lambda: keras.Sequential([keras.Input((64, 64, 3)), L.ZeroPadding2D(1),
                                                       L.MaxPooling2D(2, name="p")]),
                             "unsupported layer MaxPooling2D 'p': it follows ZeroPadding2D"),
    "a stride": (lambda: keras.Sequential([keras.Input((64, 64, 3)), L.Conv2D(4, 3, 2, padding="same", name="c")]),
                 r"unsupported layer Conv2D 'c': its strides is \[2, 2\]"),
    "no padding": (lambda: keras.Sequential([keras.Input((64, 64, 3)), L.Conv2D(4, 3, name="c")]),
                   "unsupported layer Conv2D 'c': its padding is 'valid'"),
    "another activation of convolutions": (lambda: keras.Sequential([
        keras.Input((64, 64, 3)), L.Conv2D(4, 3, padding="same", activation="tanh"), L.MaxPooling2D(2)]), "found tanh"),
    "not a square": (lambda: keras.Sequential([keras.Input((64, 96, 3)), L.Conv2D(4, 3, padding="same")]),
                     "its input has 64x96 pixels, which is not a square"),
    "another resizing": (lambda: called(DENSE(3), before=[L.Resizing(64, 64, "bicubic", name="r")]),
                         "unsupported layer Resizing 'r'"),
    "a late rescaling": (lambda: stacked(L.Flatten(), L.Rescaling(2, name="r"), DENSE(3)), "unsupported layer Rescaling 'r'"),
    "a crop": (lambda: called(L.Flatten(), DENSE(3), inputs=keras.Input((80, 80, 3)), before=[L.RandomCrop(64, 64, name="r")]),
               "unsupported layer RandomCrop 'r'"),
    "a class of the user's": (lambda: stacked(L.Flatten(), Unlike(3, name="u")), "unsupported layer .*Unlike 'u'"),
    "a class of the user's with a known name": (lambda: stacked(L.Flatten(), Copied(name="u"), DENSE(3)),
                                                "unsupported layer .*Dense 'u'"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_is_refused_by_the_first_layer_that_shows_it(tmp_path, name):
    make, message = NO_CHAINS[name]
    with pytest.raises(ModelError, match=rf"n\.keras: not a VGG network: (.*)?{message}"):
        saved(make(), tmp_path / "n.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_file_is_named_and_never_run(tmp_path, suffix):
    canary = tmp_path / "canary"
    path = str(canary)

    def touch(x):
        open(path, "w").close()
        return x / 255.0

    model = called(L.Flatten(), DENSE(3), before=[L.Lambda(touch, name="code")])
    canary.unlink()  # Keras ran it
    with pytest.raises(ModelError, match="unsupported layer Lambda 'code': it is code, which is never run"):
        saved(model, tmp_path / f"n{suffix}")
    model = stacked(L.Flatten(), DENSE(3, activation=lambda x: x, name="code"))
    with pytest.raises(ModelError, match="unsupported layer Dense 'code': its activation is"):
        saved(model, tmp_path / f"n{suffix}")
    assert not canary.exists()


WEIGHTS = {
    "nested": (lambda: stacked(L.Flatten(), DENSE(64, activation="relu"), L.Dropout(0.5), DENSE(**SOFTMAX)),
               "assumed the head '64 relu dropout, classes'"),
    "average": (lambda: called(L.GlobalAveragePooling2D(), DENSE(9, activation="relu"), DENSE(9, activation="relu"), DENSE(3)),
                "assumed the head 'average, 9 relu dropout, 9 relu dropout, classes'"),
    "maximum": (lambda: continued(L.GlobalMaxPooling2D(), DENSE(1)), "assumed the head 'max, classes binary'"),
    "frozen": (lambda: frozen(stacked(L.Flatten(), DENSE(3), norm=True)), "assumed the head 'classes'"),
    "norms": (lambda: stacked(L.Flatten(), L.BatchNormalization(epsilon=1e-3), DENSE(16), L.BatchNormalization(), L.ReLU(),
                              DENSE(3)), "assumed the head 'flatten batch-norm, 16 batch-norm relu dropout, classes'"),
    "rescaled": (lambda: called(L.Flatten(), DENSE(3), before=[L.Rescaling(1)]),
                 "assumed the head 'classes' and a network without its layer rescaling"),
    "convolutions": (lambda: stacked(L.Conv2D(9, 4, activation="relu"), L.Dropout(0.5), L.Conv2D(3, 1), L.Flatten(), size=128),
                     "assumed the head '9 relu dropout, classes'"),
    "backbone": (trunk, "using preprocessing 'caffe'. Set with --preset"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_alone_are_read_by_convention_which_is_stated(tmp_path, name, suffix):
    from keras.src.legacy.saving import legacy_h5_format

    make, notice = WEIGHTS[name]
    model = randomised(make())
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            layer.epsilon = 1e-3
    if suffix == ".h5":
        with h5py.File(tmp_path / "n.h5", "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    else:
        model.save_weights(tmp_path / "n.weights.h5")
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        network = Network.read(tmp_path / f"n{suffix}")
    assert notice in str(notices[0].message)
    assert ("or input size in the file" in str(notices[0].message)) == (name != "backbone")
    images = RNG.normal(size=(1, 128, 128, 3)).astype(np.float32) if name == "convolutions" else IMAGES
    compare(network, images.transpose(0, 3, 1, 2), answer(model, images), activation=last_activation(model))


def test_what_weights_do_not_show_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"don't show what leaky_re_lu computes; save the whole model as a \.keras file"):
        saved(stacked(L.Flatten(), DENSE(9), L.LeakyReLU(), DENSE(3)), tmp_path / "n.weights.h5")


def test_an_array_in_another_file_is_refused(tmp_path):
    saved(stacked(L.Flatten(), DENSE(3)), tmp_path / "n.h5")
    (tmp_path / "other.h5").write_bytes((tmp_path / "n.h5").read_bytes())
    with h5py.File(tmp_path / "n.h5") as file:
        layer = file["model_weights"].attrs["layer_names"][-1]
        name = f"model_weights/{layer}/{file['model_weights'][layer].attrs['weight_names'][0]}"
    with h5py.File(tmp_path / "n.h5", "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", name)
    with pytest.raises(ModelError, match=r"damaged or truncated Keras file .*is missing or in another file"):
        Network.read(tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "a") as file:
        del file[name]
        file.create_dataset(name, (128, 3), "f4", external=[(str(tmp_path / "other.h5"), 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(ModelError, match=r"damaged or truncated Keras file .*is in another file"):
        Network.read(tmp_path / "n.h5")


def test_a_configuration_too_long_or_too_deep_is_refused(tmp_path):
    saved(stacked(L.Flatten(), DENSE(3)), tmp_path / "n.keras")
    rewrite(tmp_path / "n.keras", "[" * 3_000_000)
    with pytest.raises(ModelError, match="its configuration is too long"):
        Network.read(tmp_path / "n.keras")
    rewrite(tmp_path / "n.keras", "[" * 1_000_000)
    with pytest.raises(ModelError, match=r"n\.keras: damaged or truncated Keras file"):
        Network.read(tmp_path / "n.keras")
    deep = {"class_name": "Conv2D", "config": {"name": "c"}}
    for _ in range(12):
        deep = {"class_name": "Sequential", "config": {"name": "s", "layers": [deep]}}
    rewrite(tmp_path / "n.keras", json.dumps(deep))
    with pytest.raises(ModelError, match="more than 8 models in each other"):
        Network.read(tmp_path / "n.keras")


def rewrite(path, text: str) -> None:
    """Give a `.keras` file another configuration."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            new.writestr(name, text if name == "config.json" else old.read(name))
    path.write_bytes(content.getvalue())


def places(value, before=()):
    """The path of each entry of a configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, (*before, key))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "n.keras"
    model = called(L.BatchNormalization(), L.Flatten(), DENSE(5, activation="relu"), DENSE(3), before=[VGG, L.Rescaling(2)])
    saved(model, path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    return path, config, list(places(json.loads(config)))


@settings(max_examples=100)
@given(data=st.data())
def test_a_configuration_with_other_values_is_one_clear_line(whole, data):
    path, text, known = whole
    config = json.loads(text)
    others = [None, True, 0, -1, 3, 10**30, 0.5, "", "relu", [], [1], ["x", 0, 0], {}, {"class_name": "x"}]
    for place in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)):
        value = config
        try:
            for key in place[:-1]:
                value = value[key]
            if data.draw(st.booleans()):
                value[place[-1]] = data.draw(st.sampled_from(others))
            else:
                del value[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # a place in what was changed before
    rewrite(path, json.dumps(config))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Network.read(path)
    except ModelError as error:
        assert re.fullmatch(r"[^\n]*n\.keras: [^\n]{5,800}", str(error))  # noqa: PT017
