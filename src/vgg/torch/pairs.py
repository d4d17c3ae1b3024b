"""What all losses have in common: images and targets become layer outputs, which are compared."""

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import Error
from ..network import Network
from .terms import IMAGE, Found
from .values import Values


class PairLoss(nn.Module):
    """A loss that compares layer outputs of images with those of targets; subclasses define `compare`.

    Args:
        network: whose layer outputs are compared.
        names: of the layer outputs, and IMAGE for the images themselves.
        aligned: positions are compared, so that images and targets have the same size.
        signed: images and targets have values of -1..1, not 0..1.
        recompute: see `Values`.

    Raises:
        ModelError: the network has no such layer output.
    """

    def __init__(self, network: Network, names: Sequence[str], aligned: bool, signed: bool, recompute: bool) -> None:
        super().__init__()
        self.aligned, self.signed = aligned, signed
        outputs = [name for name in names if name != IMAGE]
        self.values = Values(network, outputs, recompute) if outputs else None

    def compare(self, ours: Found, theirs: Found) -> torch.Tensor:
        """The loss of each image, float32 [batch], from the layer outputs of images and targets. Targets may have a batch of 1.

        It is called without autocast.
        """
        raise NotImplementedError

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each image.

        Args:
            images: [batch, 3, height, width], 0..1, or -1..1 with `signed`.
            targets: the same; as many images, or one for all. Only style and contextual terms take another size.

        Returns:
            float32 [batch], 0 or more.

        Raises:
            Error: the tensors are no batches of RGB images, or their sizes differ and the loss compares positions.
        """
        self._check(images, targets)
        if self.signed:
            images, targets = (images + 1) / 2, (targets + 1) / 2
        ours, theirs = {IMAGE: images}, {IMAGE: targets}
        if self.values is not None and images.shape[2:] == targets.shape[2:] and targets.requires_grad == images.requires_grad:
            found = self.values(torch.cat([images, targets]))
            ours |= {name: value[: len(images)] for name, value in found.items()}
            theirs |= {name: value[len(images) :] for name, value in found.items()}
        elif self.values is not None:
            ours |= self.values(images)
            with torch.set_grad_enabled(torch.is_grad_enabled() and targets.requires_grad):
                theirs |= self.values(targets)
        with torch.autocast(images.device.type, enabled=False):
            return self.compare(ours, theirs)

    def _check(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        for value in (images, targets):
            if value.ndim != 4 or value.shape[1] != 3 or not value.is_floating_point():
                raise Error(f"images must be float [batch, 3, height, width], not {value.dtype} {list(value.shape)}")
        if len(targets) not in (1, len(images)):
            raise Error(f"{len(targets)} targets for {len(images)} images; give equally many, or one for all")
        if self.aligned and images.shape[2:] != targets.shape[2:]:
            sizes = f"{list(images.shape[2:])} and {list(targets.shape[2:])}"
            raise Error(f"images and targets differ in size, {sizes}; resize one of them")
