import pytest

from reference import torchvision_like
from vgg import Architecture, ModelError
from vgg.architectures import CONFIGURATIONS
from vgg.formats.recognition import Shapes, recognise

COUNTS = {  # torchvision's documentation of each model
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg16-bn": 138_365_992,
    "vgg19-bn": 143_678_248,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_the_published_networks_have_the_published_number_of_parameters(name, count):
    assert Architecture(name).parameter_count == count


def test_vgg16_costs_what_the_literature_says():
    assert Architecture("vgg16").multiply_adds() == pytest.approx(15.47e9, rel=1e-3)
    assert Architecture("vgg16", head="gap").multiply_adds(448) == pytest.approx(4 * 15.3466e9, rel=1e-3)


def test_parameters_bear_the_papers_names_and_shapes():
    parameters = Architecture("vgg16").parameters
    assert parameters["conv1_1.weight"] == (64, 3, 3, 3)
    assert parameters["conv5_3.bias"] == (512,)
    assert parameters["fc6.weight"] == (4096, 512, 7, 7)
    assert parameters["fc8.weight"] == (1000, 4096)
    assert Architecture("vgg16-c").parameters["conv3_3.weight"] == (256, 256, 1, 1)
    assert list(Architecture("vgg16-bn").parameters)[:6] == [
        "conv1_1.weight", "conv1_1.bias", "bn1_1.scale", "bn1_1.bias", "bn1_1.mean", "bn1_1.variance",
    ]  # fmt: skip
    assert Architecture("vgg11-lrn").values[:3] == ("conv1_1", "norm1_1", "pool1")


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("gap", [False, True])
def test_every_architecture_has_as_many_parameters_as_torchs_modules(name, gap):
    module = torchvision_like(name, 1 / 8, 10, 64, gap)
    ours = Architecture(name, classes=10, width=1 / 8, input_size=64, head="gap" if gap else "fc")
    assert ours.parameter_count == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", set(CONFIGURATIONS) - {"vgg11-lrn"})
@pytest.mark.parametrize(("width", "size", "head"), [(1, 224, "fc"), (0.25, 32, "fc"), (0.3, 96, "fc"), (0.5, 224, "gap")])
def test_an_architecture_is_recognised_from_its_shapes(name, width, size, head):
    made = Architecture(name, classes=12, width=width, input_size=size, head=head)
    shapes = [(layer.operation, layer.parameters["weight"]) for layer in made.layers if "weight" in layer.parameters]
    convolutions = [shape for operation, shape in shapes if operation == "convolution"]
    linear = [
        (shape[0], shape[1] * (size // 32) ** 2 if len(shape) == 4 else shape[1]) for op, shape in shapes if op == "linear"
    ]
    found = recognise(Shapes(convolutions, linear, made.configuration.batch_norm))
    assert found.parameters == made.parameters
    assert (found.name, found.head) == (name, head)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "vgg17"},
        {"classes": 0},
        {"width": 0},
        {"input_size": 31},
        {"input_size": 20_000},
        {"head": "none"},
        {"epsilon": -1},
    ],
)
def test_what_is_no_network_is_refused(options):
    with pytest.raises(ModelError):
        Architecture(**options)
