"""What a network does to pixels before the first convolution, as a preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..arrays import Array
from ..preprocessing import PRESETS, Preprocessing

TOLERANCE = 1e-3  # of the largest, between a graph's numbers and a preset's


@dataclass(frozen=True)
class Pixels:
    """The input of the first convolution: pixels[order] * scale + shift, by channel."""

    order: tuple[int, ...] = (0, 1, 2)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def scales(self) -> bool:
        """Whether the numbers change, and not only their order."""
        return (self.scale, self.shift) != (Pixels().scale, Pixels().shift)

    def then(self, scale: Array, shift: Array) -> "Pixels":
        """Followed by a product and a sum, for all channels or each one. Raises ValueError for another number of channels."""
        with np.errstate(all="ignore"):  # the caller checks that the numbers are finite
            scaled, shifted = np.array(self.scale) * scale, np.array(self.shift) * scale + shift
        scales, shifts = (tuple(np.broadcast_to(one, 3).tolist()) for one in (scaled, shifted))
        return replace(self, scale=scales, shift=shifts)

    def taken(self, channels: Sequence[int]) -> "Pixels":
        """Followed by taking these channels, in this order."""
        return Pixels(*(tuple(values[channel] for channel in channels) for values in (self.order, self.scale, self.shift)))  # type: ignore[arg-type]

    def preprocessing(self, integers: bool, usual: str) -> Preprocessing | None:
        """The preprocessing that these steps are; None if there are none.

        Pixels are 0..255 if the input takes `integers`, or if the means are in that range, and 0..1 otherwise.

        Args:
            integers: whether the input's type is that of integers.
            usual: the name of the preset that is used if several have the same numbers.
        """
        scale, shift = np.array(self.scale), np.array(self.shift)
        if not self.scales:
            return None
        mean = -shift / scale
        if not integers and (scale >= 0.5).all() and ((mean >= 0) & (mean <= 1)).all() and (scale != 1).any() | shift.any():
            scale = scale / 255
        std = 1 / scale
        means = -shift * std
        channels: Literal["RGB", "BGR"] = "BGR" if self.order == (2, 1, 0) else "RGB"
        candidates = sorted(PRESETS.values(), key=lambda preset: preset.name != usual)
        for preset in candidates:
            known = np.array(preset.std) / preset.scale
            close = np.allclose(std / known, 1, atol=TOLERANCE) and np.allclose(
                means, np.array(preset.mean) / preset.scale, atol=TOLERANCE * 255
            )
            # Means that differ by channel show the order of the channels that the first convolution reads.
            if close and (len(set(preset.mean)) > 1 or channels == preset.channels):
                return preset
        mean, spread = (_rounded(values / 255) for values in (means, std))
        return Preprocessing("file", channels=channels, scale=1 / 255, mean=mean, std=spread)


def _rounded(values: Array) -> tuple[float, float, float]:
    """Three numbers with the digits of a float32."""
    red, green, blue = (float(f"{value:.7g}") + 0.0 for value in values)  # which makes -0 to 0
    return red, green, blue
