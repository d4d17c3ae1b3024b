import re
import time
from dataclasses import replace
from statistics import median

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops
from torch.nn import functional

import vgg
from conftest import EXAMPLES, ROOT, needs_native, random_network
from reference import save_tiny
from test_heads import CHANNELS, heads
from vgg import Error, ImageError, Labels, Network, Preprocessing, Quantized
from vgg.explanation import Explanation, box, cropped_area, explain, grad_cam, outputs
from vgg.heads import ACTIVATIONS
from vgg.module import Module
from vgg.overlay import COLOURS, paint
from vgg.parameters import LowRank, expanded
from vgg.predictions import scores as scores_of

PHOTO = EXAMPLES / "chelsea.png"  # 451x300
SMALL = Preprocessing("small", size=72, crop=64)
LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"), ("n1", "n2", "n3", "n4", "n5", "n6", "n7"))
NATIVE = pytest.param("native", marks=needs_native)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A network's file and the same in torch, by architecture and head."""
    folder = tmp_path_factory.mktemp("explanation")

    def make(name, gap):
        path = folder / f"{name}-{gap}.pth"
        return path, save_tiny(str(path), name, size=64, gap=gap)

    return {(name, gap): make(name, gap) for name in ("vgg11", "vgg16", "vgg16-bn") for gap in (False, True)}


def by_autograd(module, batch, classes):
    """Grad-CAM by its definition: torch's gradients at the last convolution's ReLU."""
    features = list(module.features)
    value = torch.nn.Sequential(*features[:-1])(torch.from_numpy(batch))
    logits = module.classifier(module.flatten(module.avgpool(features[-1](value))))
    maps = []
    for index in classes:
        [gradient] = torch.autograd.grad(logits[0, index], value, retain_graph=True)
        maps.append((gradient.mean((2, 3), keepdim=True) * value).sum(1)[0].detach().numpy())
    return np.stack(maps)


@pytest.mark.parametrize("engine", [NATIVE, "onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("gap", [False, True], ids=["fc", "gap"])
@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg16-bn"])
def test_grad_cam_is_what_torch_differentiates(judged, name, gap, engine):
    path, module = judged[name, gap]
    network = Network.read(path)
    batch = SMALL(PHOTO)[None]
    values = {key: value[0] for key, value in vgg.engines.open(network, engine).run(batch, outputs(network)).items()}
    expected = by_autograd(module, batch, [4, 0, 6])
    found = grad_cam(network, values, [4, 0, 6])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def by_module(network, channels, classes):
    """Grad-CAM by its definition, of any head: torch's gradients of logits at the last convolution's output, `channels`."""
    module = Module(network.architecture).eval()
    module.load(network)
    module.double()  # in float32, the gradient of a sigmoid that is rounded to 1 would be 0
    end = module.index_of("pool5")
    value = logits = torch.from_numpy(channels).double()[None].requires_grad_()
    for layer in list(module)[end:]:
        logits = layer(logits)
    maps = []
    for index in classes:
        logit = logits[0, 0] * (1 if index else -1) if network.architecture.output == "binary" else logits[0, index]
        [gradient] = torch.autograd.grad(logit, value, retain_graph=True)
        maps.append((gradient.mean((2, 3), keepdim=True) * value).sum(1)[0].detach().numpy())
    return np.stack(maps)


def compared(network, size, classes, engine):
    """Grad-CAM by vgg and by torch, of the same output of the last convolution."""
    batch = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    run = vgg.engines.open(network, engine).run(batch, outputs(network))
    values = {key: value[0] for key, value in run.items()}
    return grad_cam(network, values, classes), by_module(network, values[outputs(network)[0]], classes)


@needs_native
@settings(max_examples=40)
@given(
    head=heads(), channels=CHANNELS, bn=st.booleans(), size=st.sampled_from([64, 97]), seed=st.integers(0, 9),
    engine=st.sampled_from(["native", "onnxruntime", "torch"]),
)  # fmt: skip
def test_grad_cam_of_any_head_is_what_torch_differentiates(head, channels, bn, size, seed, engine):
    classes = 2 if head.output == "binary" else 5
    options = {"input_size": size, "head": head.text, "channels": channels, "classes": classes}
    network = random_network("vgg11-bn" if bn else "vgg11", seed, **options)
    found, expected = compared(network, size, range(classes), engine)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_has_its_own_derivative(activation):
    word = activation.replace("_", "-")
    network = random_network(
        "vgg11", 3, input_size=64, head=f"flatten batch-norm, 300 {word}, 40 batch-norm {word}, classes {word}"
    )
    found, expected = compared(network, 64, range(7), "torch")
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def quantized(value, group=0, axis=0):
    """A weight as int8 with a scale a row, or a group of neighbours."""
    if value.ndim > 1 and group:
        parts = np.abs(value).reshape(*value.shape[:axis], -1, group, *value.shape[axis + 1 :]).max(axis + 1)
        scale = (parts / 127).astype(np.float32)
        return Quantized(np.rint(value / np.repeat(scale, group, axis)).astype(np.int8), scale, axis=axis, group=group)
    scale = np.float32(np.abs(value).reshape(len(value), -1).max(1) / 127)
    return Quantized(np.rint(value / scale.reshape(-1, *[1] * (value.ndim - 1))).astype(np.int8), scale)


@pytest.mark.parametrize("head", ["fc", "48 silu, 64 gelu batch-norm, classes"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8", "groups", "keras", "low rank"])
def test_weights_are_read_as_they_are_stored(kind, head):
    network = random_network("vgg11", input_size=64, head=head)
    stored = dict(network.parameters)
    for name in ("fc6.weight", "fc7.weight", "fc8.weight"):
        value = stored[name]
        if kind == "low rank":
            left = np.random.default_rng(0).normal(0, 0.5, (len(value), 6)).astype(np.float32)
            stored[name] = LowRank(quantized(left), (left.T @ value.reshape(len(value), -1)).reshape(6, *value.shape[1:]))
            continue
        if kind in ("float16", "bfloat16"):
            stored[name] = value.astype(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
        elif kind == "keras":  # [height, width, in, out], seen from the paper's side
            axes = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
            back = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
            stored[name] = np.ascontiguousarray(value.transpose(axes)).transpose(back)
            assert not stored[name].flags.c_contiguous
        else:
            stored[name] = quantized(value, 16 if kind == "groups" and value.ndim == 2 else 0, 1)
    network = replace(network, parameters=stored)
    plain = replace(network, parameters={n: expanded(v).astype(np.float32) for n, v in network.parameters.items()})
    run = vgg.engines.open(plain).run(SMALL(PHOTO)[None], outputs(network))
    values = {key: value[0] for key, value in run.items()}
    expected = grad_cam(plain, values, [1, 5])
    np.testing.assert_allclose(grad_cam(network, values, [1, 5]), expected, atol=1e-5 * np.abs(expected).max())


@needs_native
@pytest.mark.parametrize("gap", [False, True], ids=["fc", "gap"])
def test_a_class_map_is_the_head_at_each_place(judged, gap):
    path, module = judged["vgg11", gap]
    found = vgg.load(path, "native", preprocessing=SMALL).explain(PHOTO, [2, 5], method="class-map", size=128)
    image = Image.open(PHOTO).convert("RGB").resize((192, 128), Image.Resampling.BILINEAR)
    batch = torch.from_numpy((np.asarray(image) / 255 - SMALL.mean) / SMALL.std).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        value = module.features(batch)
        if gap:
            logits = functional.conv2d(value, module.classifier[0].weight[:, :, None, None], module.classifier[0].bias)
        else:
            for place, side in ((0, 2), (3, 1), (6, 1)):
                layer = module.classifier[place]
                value = functional.conv2d(value, layer.weight.reshape(len(layer.weight), -1, side, side), layer.bias)
                value = value.relu() if place < 6 else value
            logits = value
    np.testing.assert_allclose(found.maps, logits.softmax(1)[0, [2, 5]].numpy(), atol=1e-5)
    # A place is 32 pixels of 192x128. The paper's head sees 64 of them there, and its place is their middle.
    assert found.area == pytest.approx((0, 0, 1, 1) if gap else (16 / 192, 16 / 128, 176 / 192, 112 / 128))


@pytest.mark.parametrize(("side", "area"), [(48, (0, 0, 1, 1)), (97, (1 / 3, 1 / 3, 2 / 3, 2 / 3))])
def test_a_class_map_lies_where_the_head_sees_it(side, area):
    """Also if the input is no multiple of 32 pixels, whose last ones no position covers."""
    crop = replace(SMALL, crop=side, size=side)
    classifier = vgg.load(replace(random_network(input_size=side), preprocessing=crop), "torch")
    found = classifier.explain(np.zeros((96, 96, 3), np.uint8), 0, method="class-map", size=max(96, side))
    assert found.area == pytest.approx(area, abs=0.01)


@pytest.mark.parametrize("wanted", [(), 2, "2", "cat", "n3"])
def test_a_class_is_named_in_any_way(wanted):
    classifier = vgg.load(replace(random_network(labels=LABELS, input_size=64), preprocessing=SMALL))
    best = classifier.classify(PHOTO)[0]
    found = classifier.explain(PHOTO, wanted)
    assert [one.label for one in found.classes] == [best.label if wanted == () else "cat"]
    assert found.classes[0].score == pytest.approx(float(classifier.scores(PHOTO)[0, found.classes[0].index]), abs=1e-6)
    assert found.area == cropped_area(SMALL, 451, 300)
    assert found.maps.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "do"}, "unknown class 'do'; the model has 7; did you mean dog"),
        ({"classes": 7}, "unknown class '7'; the model has 7"),
        ({"method": "guess"}, "unknown method 'guess'; choose from grad-cam, grad-cam\\+\\+, layer-cam, score-cam"),
        ({"method": "class-map", "size": 32}, "the size for a class map must be 64 to 1024 pixels, not 32"),
        ({"method": "class-map", "engine": "onnxruntime"}, "onnxruntime takes only crops of the network's input size"),
    ],
)
def test_what_does_not_fit_is_said(options, message):
    engine = options.pop("engine", "torch")
    classifier = vgg.load(replace(random_network(labels=LABELS, input_size=64), preprocessing=SMALL), engine)
    with pytest.raises(Error, match=message):
        classifier.explain(PHOTO, **options)


SEVERAL = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def described(head, offset=0.0, **options):
    """A network of 64 pixels with names; `offset` is added to all logits."""
    names = SEVERAL[: options.get("classes", 7)]
    network = random_network(labels=Labels(names), input_size=64, head=head, **options)
    last = next(name for name in reversed(network.parameters) if name.endswith(".bias"))
    parameters = {**network.parameters, last: network.parameters[last] + np.float32(offset)}
    return replace(network, parameters=parameters, preprocessing=SMALL)


@pytest.mark.parametrize(("offset", "count"), [(0.0, None), (9.0, 5), (-9.0, 1)])
def test_labels_of_an_image_are_explained_by_label(offset, count):
    classifier = vgg.load(described("average, 20 relu, classes sigmoid", offset), "torch")
    [scores] = classifier.scores(PHOTO)
    order = np.argsort(-scores)
    expected = order[: count or (scores > 0.5).sum()]
    found = classifier.explain(PHOTO)
    assert [one.index for one in found.classes] == expected.tolist()
    assert [one.score for one in found.classes] == pytest.approx(scores[expected].tolist())
    assert found.maps.shape == (len(expected), 4, 4)


def test_one_logit_speaks_for_and_against():
    classifier = vgg.load(described("average, 20 relu, classes binary", classes=2), "torch")
    best = int(classifier.scores(PHOTO)[0].argmax())
    assert [one.index for one in classifier.explain(PHOTO).classes] == [best]
    negative, positive = classifier.explain(PHOTO, [0, 1]).maps
    assert np.abs(positive).max() > 0
    np.testing.assert_array_equal(negative, -positive)


@pytest.mark.parametrize("last", ["", "conv3_2", "pool2"])
@pytest.mark.parametrize("engine", [NATIVE, "onnxruntime"])
def test_a_backbone_shows_where_it_is_active(last, engine):
    network = replace(random_network(head="none", classes=0, last=last, input_size=64), preprocessing=SMALL)
    found = vgg.load(network, engine).explain(PHOTO)
    value = vgg.engines.open(network, "torch").run(SMALL(PHOTO)[None], network.architecture.values[-1:])
    assert found.classes == []
    assert found.area == cropped_area(SMALL, 451, 300)
    expected = (value[last or "pool5"][0] ** 2).mean(0)
    np.testing.assert_allclose(found.maps, expected[None], atol=1e-5 * expected.max())
    drawn = found.overlay(boxes=True)
    assert 300 < drawn.height < 350  # with a caption
    assert len(np.unique(np.asarray(drawn.crop((0, 300, 451, drawn.height))))) > 10
    for options in ({"classes": "cat"}, {"method": "class-map"}):
        with pytest.raises(Error, match="this vgg11 has no head, so it has no classes to explain"):
            vgg.load(network, engine).explain(PHOTO, **options)


@pytest.mark.parametrize("engine", [NATIVE, "torch"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "binary"])
@pytest.mark.parametrize("head", ["batch-norm, 30 gelu batch-norm, 20 elu dropout 0.5, classes", "classes"])
@pytest.mark.parametrize("pooling", ["flatten", "average"])
def test_a_class_map_of_any_head_is_the_head_at_each_place(head, pooling, output, engine):
    head = f"{pooling} {head} {output}" if head.startswith("batch") else f"{pooling}, {head} {output}"
    network = described(head, classes=2 if output == "binary" else 7)
    found = vgg.load(network, engine).explain(PHOTO, [1, 0], method="class-map", size=128)
    image = Image.open(PHOTO).convert("RGB").resize((192, 128), Image.Resampling.BILINEAR)
    batch = SMALL.normalise(np.asarray(image))[None]
    pool5 = vgg.engines.open(network, "torch").run(batch, ("pool5",))["pool5"]
    side = 2 if pooling == "flatten" else 1
    module = Module(network.architecture).eval()
    module.load(network)
    layers = list(module)[module.index_of("pool5") + 1 :]
    for row, column in np.ndindex(5 - side, 7 - side):
        value = torch.from_numpy(pool5[:, :, row : row + side, column : column + side])
        for layer in layers:
            value = layer(value)
        expected = scores_of(value.detach().numpy()[0], output)
        np.testing.assert_allclose(found.maps[:, row, column], expected[[1, 0]], atol=1e-5)
    assert found.maps.shape[1:] == (5 - side, 7 - side)


@pytest.mark.parametrize("head", ["max, 20 relu, classes", "average 2, classes"])
def test_pooling_that_has_no_class_map_is_named(head):
    with pytest.raises(Error, match=f"no class map for the head '{head}', which doesn't read or average the whole map"):
        vgg.load(described(head), "torch").explain(PHOTO, method="class-map")


def test_a_hair_of_a_picture_has_no_class_map():
    classifier = vgg.load(replace(random_network(input_size=64), preprocessing=SMALL), "torch")
    with pytest.raises(ImageError, match=r"hair\.png: the aspect ratio exceeds 4"):
        explain(classifier, np.zeros((10, 50, 3), np.uint8), method="class-map", name="hair.png")


def test_a_box_holds_the_largest_region():
    heat = np.full((14, 14), -1, np.float32)
    heat[2:4, 2:4] = 9
    heat[6:11, 7:13] = 5
    left, top, right, bottom = box(heat, (0, 0, 1, 1))
    assert [round(14 * side, 0) for side in (left, top, right, bottom)] == [7, 6, 13, 11]
    # On a part of the image, by the same shares; above nearly all, only the peak is left.
    inside = box(heat, (0.5, 0, 1, 0.5))
    assert inside == pytest.approx((0.5 + left / 2, top / 2, 0.5 + right / 2, bottom / 2))
    peak = box(heat, (0, 0, 1, 1), threshold=0.8)
    assert peak[2] < 5 / 14
    assert box(-np.ones((14, 14), np.float32), (0.1, 0.2, 0.3, 0.4)) == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_regions_are_those_that_a_library_finds():
    from skimage.measure import label, regionprops

    from vgg.explanation.boxes import _largest

    for seed in range(20):
        mask = np.random.default_rng(seed).random((40, 50)) < 0.35
        largest = max(regionprops(label(mask, connectivity=2)), key=lambda region: region.area)
        top, left, bottom, right = largest.bbox
        assert _largest(mask) == (left, top, right, bottom)


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return vgg.load().explain(PHOTO, ["tabby", "lynx"])


def test_an_overlay_leaves_the_rest_of_the_picture_as_it_is(explanation):
    one = replace(explanation, classes=explanation.classes[:1], maps=explanation.maps[:1])
    drawn, image = one.overlay(), Image.open(PHOTO).convert("RGB")
    assert drawn.size == image.size
    left, top, right, bottom = ImageChops.difference(drawn, image).getbbox()
    assert 451 * one.area[0] - 1 <= left
    assert right <= 451 * one.area[2] + 1
    assert 300 * one.area[1] - 1 <= top
    assert bottom <= 300 * one.area[3] + 1
    # What is brightest in the map is brightest in the glow; the image is still there below it.
    change = np.asarray(ImageChops.difference(drawn, image), np.float64).sum(2)
    heat = Image.fromarray(one.maps[0]).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    assert np.corrcoef(np.asarray(heat).clip(0).ravel(), change[top:bottom, left:right].ravel())[0, 1] > 0.7
    assert np.corrcoef(np.asarray(drawn.convert("L")).ravel(), np.asarray(image.convert("L")).ravel())[0, 1] > 0.8


def test_an_overlay_fades_out_only_inside_the_picture():
    image = Image.new("RGB", (100, 100))
    for area, sides in (((0, 0, 1, 1), (1, 1, 1, 1)), ((0, 0.2, 0.8, 1), (1, 0, 0, 1))):
        drawn = np.asarray(paint(image, np.ones((7, 7), np.float32), area), float).sum(2)
        left, top, right, bottom = (round(100 * share) for share in area)
        x, y = (left + right) // 2, (top + bottom) // 2
        ends = [drawn[y, left], drawn[top, x], drawn[y, right - 1], drawn[bottom - 1, x]]
        assert np.round(ends / drawn[y, x], 1).tolist() == list(sides)


def test_a_box_is_drawn_where_it_is(explanation):
    one = replace(explanation, classes=explanation.classes[:1], maps=explanation.maps[:1])
    bounds = ImageChops.difference(one.overlay(boxes=True), one.overlay()).getbbox()
    assert bounds == one.box()


def test_several_classes_stand_side_by_side(explanation):
    drawn = explanation.overlay()
    assert drawn.width == pytest.approx(2 * 451, abs=20)
    assert 300 < drawn.height < 350
    left = replace(explanation, classes=explanation.classes[:1], maps=explanation.maps[:1]).overlay()
    assert drawn.crop((0, 0, 451, 300)).tobytes() == left.tobytes()
    assert len(np.unique(np.asarray(drawn.crop((0, 300, 451, drawn.height))))) > 10  # a name


def test_a_large_picture_is_drawn_smaller_and_a_long_name_is_cut(explanation):
    large = Image.open(PHOTO).convert("RGB").resize((3000, 2000))
    named = [replace(one, label="a very long name " * 9) for one in explanation.classes]
    drawn = replace(explanation, image=large, classes=named).overlay(boxes=True)
    assert drawn.height < 800
    assert drawn.width < 2100


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (32, 32)])
def test_the_smallest_pictures_are_drawn(explanation, size):
    tiny = replace(explanation, image=Image.new("RGB", size))
    assert tiny.overlay(boxes=True).height >= size[1]


def test_the_page_paints_in_the_same_colours():
    script = (ROOT / "src/vgg/serving/page/heat.js").read_text()
    stops = re.search(r"COLOURS = \[(.*)\];", script)[1]
    assert [float(one) for one in re.findall(r"[\d.]+", stops)] == [part for stop in COLOURS for part in stop]
    lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for _, red, green, blue, _ in COLOURS]
    assert lightness == sorted(lightness)


@needs_native
def test_explaining_takes_little_longer_than_classifying(real_onnx):
    """By processor time on one thread, which others at work on the machine leave as it is."""
    network = Network.read(real_onnx["vgg16"])
    engine = vgg.engines.open(network, "native", threads=1)
    batch = network.preprocessing(PHOTO)[None]
    forward, backward = [], []
    for _ in range(5):
        started = time.process_time()
        values = {name: value[0] for name, value in engine.run(batch, outputs(network)).items()}
        middle = time.process_time()
        grad_cam(network, values, [285])
        forward.append(middle - started)
        backward.append(time.process_time() - middle)
    assert 1 + median(backward) / median(forward) < 1.3
