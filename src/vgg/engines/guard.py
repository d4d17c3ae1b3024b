"""The checks of an engine's input and of the network's parameters."""

from collections.abc import Collection, Sequence

import numpy as np

from ..architectures import STRIDE, Architecture
from ..arrays import Array
from ..errors import ModelError
from ..network import Network


class Guard:
    """The checks before a run: of the outputs' names and the batch, and of the parameters of each layer before its first use.

    Args:
        network: that the engine computes.
        dense: see `check_batch`.
        pixels: see `check_batch`.
        skipped: names of parameters that aren't checked here, since the engine's outputs show whether they are finite.
    """

    def __init__(self, network: Network, *, dense: bool = False, pixels: bool = False, skipped: Collection[str] = ()) -> None:
        self.network, self._dense, self._pixels = network, dense, pixels
        self._unchecked = [name for name in network.parameters if name not in skipped]

    def check(self, batch: Array, outputs: Sequence[str]) -> None:
        """Raise ModelError for unknown outputs, a batch of another shape, or parameters that are not finite numbers."""
        self.network.check_values(outputs)
        check_batch(self.network.architecture, batch, dense=self._dense, pixels=self._pixels)
        if self._unchecked and outputs:
            needed = {*self.needed(outputs)}
            self.network.check_finite([name for name in self._unchecked if name in needed])
            self._unchecked = [name for name in self._unchecked if name not in needed]

    def needed(self, outputs: Sequence[str]) -> list[str]:
        """The names of the parameters of the layers up to the last of these outputs."""
        layers = self.network.architecture.layers
        last = max((place for place, layer in enumerate(layers) if layer.value in outputs), default=-1)
        return [f"{layer.name}.{role}" for layer in layers[: last + 1] for role in layer.parameters]


def check_batch(architecture: Architecture, batch: Array, *, dense: bool = False, pixels: bool = False) -> None:
    """Check the shape and dtype of a batch.

    Args:
        architecture: of the network that gets the batch.
        batch: the input.
        dense: whether the engine takes images larger than `Architecture.input_size` if the head reads a map.
        pixels: whether the engine takes uint8, too.

    Raises:
        ModelError: the network doesn't take it.
    """
    side = architecture.input_size if architecture.fixed_size else STRIDE
    dtypes = (np.float32, np.uint8) if pixels else (np.float32,)
    fits = batch.ndim == 4 and batch.shape[1] == 3 and batch.dtype in dtypes and min(batch.shape[2:]) >= side
    fixed = architecture.fixed_map and not dense
    side = architecture.input_size if fixed else side
    if not fits or (fixed and batch.shape[2:] != (side, side)):
        size = f"{side}, {side}]" if fixed else f"height, width] of {side} pixels or more"
        raise ModelError(f"{architecture.name} takes float32 [batch, 3, {size}, not {batch.dtype} {list(batch.shape)}")
