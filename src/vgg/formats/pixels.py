"""What a network does to pixels before the first convolution, as a preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..arrays import Array
from ..preprocessing import PRESETS, Preprocessing

TOLERANCE = 1e-3  # of the largest, between a graph's numbers and a preset's
RANGES = {"0..1": (0, 1 / 255), "-1..1": (-1, 2 / 255), "0..255": (0, 1)}  # of pixels: the least, and the factor of 0..255


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

    def preprocessing(self, integers: bool, usual: str) -> tuple[Preprocessing, str] | None:
        """The preprocessing that these steps are, and the range of the input's pixels; None if there are no steps.

        The range is 0..255 if the input takes `integers`; of floats, the one with which the numbers are those of a preset, or
        else the one that contains the means.

        Args:
            integers: whether the input's type is that of integers.
            usual: the name of the preset that is used if several have the same numbers.
        """
        if not self.scales and not integers:
            return None
        ranges = ["0..255"] if integers else self._ranges()
        channels: Literal["RGB", "BGR"] = "BGR" if self.order == (2, 1, 0) else "RGB"
        candidates = sorted(PRESETS.values(), key=lambda preset: preset.name != usual)
        found = [(name, *self._normalisation(name)) for name in ranges]
        for name, means, std in found:
            for preset in candidates:
                known = np.array(preset.std) / preset.scale
                close = np.allclose(std / known, 1, atol=TOLERANCE) and np.allclose(
                    means, np.array(preset.mean) / preset.scale, atol=TOLERANCE * 255
                )
                # Means that differ by channel show the preset, and the order of the channels that the first convolution reads.
                if close and len(set(preset.mean)) > 1:
                    return preset, name
        name, means, std = found[0]
        mean, spread = (_rounded(values / 255) for values in (means, std))
        return Preprocessing("file", channels=channels, scale=1 / 255, mean=mean, std=spread), name

    def _ranges(self) -> list[str]:
        """The ranges of float pixels that the numbers allow, the likeliest first."""
        scale = np.array(self.scale)
        mean = -np.array(self.shift) / scale
        if (scale < 0.5).any() or (np.abs(mean) > 1).any():
            return ["0..255"]
        return ["0..1", "-1..1"] if (mean >= 0).all() else ["-1..1"]

    def _normalisation(self, pixels: str) -> tuple[Array, Array]:
        """The mean and standard deviation of pixels 0..255, for an input in a range of RANGES."""
        low, factor = RANGES[pixels]
        std = 1 / (np.array(self.scale) * factor)
        return -(np.array(self.shift) + low * np.array(self.scale)) * std, std


def _rounded(values: Array) -> tuple[float, float, float]:
    """Three numbers with the digits of a float32."""
    red, green, blue = (float(f"{value:.7g}") + 0.0 for value in values)  # which makes -0 to 0
    return red, green, blue
