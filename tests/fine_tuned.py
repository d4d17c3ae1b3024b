"""Fine-tuned networks as people save them: the convolutions of the network in the package with a new head."""

import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from torch import nn

import vgg
from vgg.parameters import expanded

CONVOLUTIONS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


class Pets(nn.Module):
    """A VGG-16 whose classifier was replaced, as in torchvision's tutorial on transfer learning."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers, channels = [], 3
        for entry in CONVOLUTIONS:
            layers += [nn.MaxPool2d(2)] if entry == "M" else [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
            channels = channels if entry == "M" else entry
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.4), nn.Linear(64, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def fine_tune(data) -> tuple[Pets, list[str]]:
    """A network whose new head was trained on class folders."""
    torch.manual_seed(0)
    base = vgg.load()
    names = sorted(path.name for path in data.iterdir())
    images = [(index, path) for index, name in enumerate(names) for path in sorted((data / name).iterdir())]
    vectors = torch.from_numpy(base.features([str(path) for _, path in images], "pool6")["pool6"])
    targets = torch.tensor([index for index, _ in images])
    module = Pets(len(names)).eval()
    convolutions = [layer for layer in module.features if isinstance(layer, nn.Conv2d)]
    named = [name.removesuffix(".weight") for name in base.network.parameters if name.startswith("conv") and "weight" in name]
    for layer, name in zip(convolutions, named, strict=True):
        for role in ("weight", "bias"):
            value = np.array(expanded(base.network.parameters[f"{name}.{role}"]), np.float32)
            getattr(layer, role).data = torch.from_numpy(value)
    optimizer = torch.optim.Adam(module.classifier.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module.classifier(vectors), targets, label_smoothing=0.1).backward()
        optimizer.step()
    return module, names


def save_torch(module: Pets, names: list[str], path) -> None:
    """As training scripts save a checkpoint."""
    classes = {name: index for index, name in enumerate(names)}
    torch.save({"epoch": 8, "model_state_dict": module.state_dict(), "class_to_idx": classes}, path)


def save_keras(module: Pets, path) -> None:
    """The same network as Keras users build and save it, with its preprocessing in front."""
    import keras

    warnings.simplefilter("ignore", DeprecationWarning)  # of Keras's use of NumPy; pytest restores the filters
    trunk = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    convolutions = [layer for layer in module.features if isinstance(layer, nn.Conv2d)]
    for ours, theirs in zip(convolutions, [one for one in trunk.layers if "conv" in one.name], strict=True):
        theirs.set_weights([ours.weight.detach().numpy().transpose(2, 3, 1, 0), ours.bias.detach().numpy()])
    model = keras.Sequential([
        keras.layers.Rescaling(1 / 255),
        keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.229**2, 0.224**2, 0.225**2]),
        trunk,
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(module.classifier[-1].out_features, activation="softmax"),
    ])  # fmt: skip
    model.build((None, 224, 224, 3))
    for ours, theirs in zip((module.classifier[0], module.classifier[3]), (model.layers[4], model.layers[6]), strict=True):
        theirs.set_weights([ours.weight.detach().numpy().T, ours.bias.detach().numpy()])
    model.save(path)
