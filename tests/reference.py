"""An independent judge: the networks built from torch's own modules, with layouts as torchvision and timm have them."""

from collections import OrderedDict

import torch
from torch import nn

A = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
B = [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
C = [64, 64, "M", 128, 128, "M", 256, 256, -256, "M", 512, 512, -512, "M", 512, 512, -512, "M"]
D = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
E = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
COLUMNS = {"vgg11": A, "vgg11-lrn": A, "vgg13": B, "vgg16-c": C, "vgg16": D, "vgg19": E}


def torchvision_like(
    name: str, width: float, classes: int, size: int, gap: bool = False, epsilon: float = 1e-5, seed: int = 0
) -> nn.Module:
    """A network with the keys of torchvision's VGG; a negative number is a 1x1 convolution."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for entry in COLUMNS[name.removesuffix("-bn")]:
        if entry == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        out, kernel = max(1, round(abs(entry) * width)), 3 if entry > 0 else 1
        layers.append(nn.Conv2d(channels, out, kernel, padding=kernel // 2))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
        if name.endswith("-bn"):
            norm = nn.BatchNorm2d(out, eps=epsilon)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            layers.append(norm)
        layers.append(nn.ReLU())
        if name.endswith("-lrn") and len(layers) == 2:
            layers.append(nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0))
        channels = out
    hidden, side = max(1, round(4096 * width)), size // 32
    paper = [
        nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes),
    ]  # fmt: skip
    pool = nn.AdaptiveAvgPool2d(1) if gap else nn.Identity()
    classifier = nn.Sequential(*([nn.Linear(channels, classes)] if gap else paper))
    parts = {"features": nn.Sequential(*layers), "avgpool": pool, "flatten": nn.Flatten(), "classifier": classifier}
    return nn.Sequential(OrderedDict(parts)).eval()


def timm_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The same parameters with timm's keys: fc1 is a 7x7 convolution, fc2 a 1x1."""
    state = dict(module.state_dict())
    convolution = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2.", "classifier.6.": "head.fc."}
    channels = [value for value in state.values() if value.ndim == 4][-1].shape[0]
    renamed = {}
    for key, value in state.items():
        for old, new in convolution.items():
            if key.startswith(old):
                if key == "classifier.0.weight":
                    side = int((value.shape[1] / channels) ** 0.5)
                    value = value.reshape(len(value), channels, side, side)
                if key == "classifier.3.weight":
                    value = value[:, :, None, None]
                key = key.replace(old, new)
        renamed[key] = value
    return renamed


def save_tiny(path: str, name: str = "vgg11", **options: object) -> nn.Module:
    """Save a narrow network's state dictionary, as users have them; the module itself."""
    module = torchvision_like(name, **{"width": 1 / 16, "classes": 7, "size": 32, **options})
    torch.save(module.state_dict(), path)
    return module
