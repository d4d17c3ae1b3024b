"""Print a table of architectures and opsets as Markdown. Files pass onnx's checker and are compared with torch's modules."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch

from formats.test_onnx import IMAGES, OPSETS, as_network
from onnx_judge import error
from reference import torchvision_like
from vgg.architectures import CONFIGURATIONS

print(f"| architecture | opsets {OPSETS[0]} to {OPSETS[-1]} | largest error |\n|---|---|---|")
for name in CONFIGURATIONS:
    module = torchvision_like(name, 1 / 16, 9, 64)
    expected = module(torch.from_numpy(IMAGES)).detach().numpy()
    with tempfile.TemporaryDirectory() as folder:
        errors = {}
        for opset in OPSETS:
            as_network(name, module).write(path := Path(folder) / "n.onnx", opset=opset)
            errors[opset] = error(path, IMAGES, expected)
    passed = " ".join(str(opset) if share < 1e-5 else f"**{opset}**" for opset, share in errors.items())
    print(f"| `{name}` | {passed} | {max(errors.values()):.0e} |")
