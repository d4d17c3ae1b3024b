"""The dimensions of a value in a graph: which axes of the batch each of them holds.

Axes are letters: N images, C channels, H rows, W columns. A map is `N C H W` or, channels last, `N H W C`; flattened it is
`N CHW` or `N HWC`. A dimension without an axis has the size 1.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..arrays import Array

# Sizes that a file leaves open are represented by numbers with large prime factors. Shapes that a graph computes are then
# definite, and a Reshape shows by them which axes it joins. Height and width can be halved five times.
OPEN = {"N": 10007, "H": 32 * 10009, "W": 32 * 10037}


class Mismatch(ValueError):
    """An operator's shape or axes don't fit the value that it reads."""


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a value. The methods give those of an operator's result, and raise Mismatch if they don't fit."""

    axes: tuple[str, ...]
    sizes: Mapping[str, int]  # by axis
    free: str = ""  # the axes whose sizes are open
    batch: int = 1  # number of images that the file fixes, for constant shapes that contain it

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[axis] for axis in held) for held in self.axes)

    def sized(self, **sizes: int) -> "Dimensions":
        """The same dimensions with other sizes of axes, which are then known."""
        free = "".join(axis for axis in self.free if axis not in sizes)
        return replace(self, sizes={**self.sizes, **sizes}, free=free)

    def scaled(self, change: Callable[[int], int]) -> "Dimensions":
        """With other numbers of rows and columns, which are as open as before."""
        return replace(self, sizes={**self.sizes, **{axis: change(self.sizes[axis]) for axis in "HW"}})

    def places(self, axes: Iterable[int]) -> list[int]:
        """The places of dimensions, which a file may count from the end."""
        places = [int(axis) + len(self.axes) * (axis < 0) for axis in axes]
        if not all(0 <= place < len(self.axes) for place in places) or len(set(places)) < len(places):
            raise Mismatch(f"axes {[int(axis) for axis in axes]} of {len(self.axes)} dimensions")
        return places

    @property
    def significant(self) -> tuple[str, ...]:
        """The axes without rows and columns of size 1."""
        single = [axis for axis in "HW" if self.sizes[axis] == 1]
        return tuple("".join(axis for axis in held if axis not in single) for held in self.axes)

    @property
    def channel(self) -> int | None:
        """The place of the dimension that holds the channels, alone or with rows and columns; None if there is none."""
        return next((place for place, held in enumerate(self.significant) if "C" in held and "N" not in held), None)

    @property
    def is_map(self) -> bool:
        """Whether these are those of a map in ONNX's order."""
        wanted = ("N", "C", *("" if self.sizes[axis] == 1 else axis for axis in "HW"))
        return self.significant == wanted

    def reduced(self, axes: Iterable[int], keep: bool) -> tuple["Dimensions", str]:
        """The result of a reduction, and the axes that it reduces."""
        places = self.places(axes)
        gone = "".join(self.axes[place] for place in places)
        kept = ["" if place in places else held for place, held in enumerate(self.axes) if keep or place not in places]
        return replace(self.sized(**dict.fromkeys(gone, 1)), axes=tuple(kept)), gone

    def transposed(self, permutation: Sequence[int]) -> "Dimensions":
        places = self.places(permutation or range(len(self.axes))[::-1])
        if len(places) != len(self.axes):
            raise Mismatch(f"a permutation of {len(places)} of {len(self.axes)} dimensions")
        return replace(self, axes=tuple(self.axes[place] for place in places))

    def squeezed(self, axes: Array | None) -> "Dimensions":
        """Without these dimensions, or all, of size 1."""
        single = [place for place, size in enumerate(self.shape) if size == 1]
        places = single if axes is None else self.places(axes.reshape(-1))
        if not set(places) <= set(single):
            raise Mismatch(f"axes {places} are not of size 1")
        return replace(self, axes=tuple(held for place, held in enumerate(self.axes) if place not in places))

    def unsqueezed(self, axes: Array) -> "Dimensions":
        """With new dimensions of size 1; the first one is that of the images if the value is a single image."""
        rank = len(self.axes) + axes.size
        places = replace(self, axes=("",) * rank).places(axes.reshape(-1)) if rank <= 8 else []
        held = iter(self.axes)
        made = ["" if place in places else next(held) for place in range(rank)]
        if 0 in places and "N" not in "".join(made):
            return replace(self.sized(N=1), axes=("N", *made[1:]))
        return replace(self, axes=tuple(made))

    def flattened(self, axis: int) -> "Dimensions":
        """As a matrix: the dimensions before `axis`, and those from it on."""
        axis += len(self.axes) * (axis < 0)
        return replace(self, axes=("".join(self.axes[:axis]), "".join(self.axes[axis:])))

    def reshaped(self, target: Sequence[int], copies: bool = True) -> "Dimensions":
        """In another shape, where -1 stands for the rest and, if it `copies`, 0 for the size of the same dimension."""
        shape = self.shape
        if len(target) > 8 or (copies and any(size == 0 and place >= len(shape) for place, size in enumerate(target))):
            raise Mismatch(f"the shape {list(target)}")
        wanted = [shape[place] if size == 0 and copies else int(size) for place, size in enumerate(target)]
        variants = [wanted]
        if wanted[:1] == [self.batch] and self.axes[:1] == ("N",):
            variants.insert(0, [shape[0], *wanted[1:]])
        for variant in variants:
            try:
                return replace(self, axes=tuple(self._joined(variant)))
            except Mismatch:
                pass
        if self.free and len(wanted) == 2 and self.axes[0] == "N" and wanted[1] % self.sizes["C"] == 0:
            return self.flattened(1)  # the size of the map, and so that of the input, follows from this number
        raise Mismatch(f"the shape {list(target)} for {self}")

    def _joined(self, target: Sequence[int]) -> Iterator[str]:
        """The axes that each dimension of a shape holds."""
        total, rest = math.prod(self.shape), math.prod(size for size in target if size != -1)
        if target.count(-1) > 1 or min(target, default=1) < -1 or rest == 0 or total % rest:
            raise Mismatch
        left, sizes = list("".join(self.axes)), self.sizes
        for place, size in enumerate(total // rest if size == -1 else size for size in target):
            held = left.pop(0) if size == 1 and left and sizes[left[0]] == 1 else ""
            while left and math.prod(sizes[axis] for axis in held) < size:
                held += left.pop(0)
            while left and place == len(target) - 1 and sizes[left[0]] == 1:
                held += left.pop(0)
            if math.prod(sizes[axis] for axis in held) != size:
                raise Mismatch
            yield held
        if left:
            raise Mismatch

    def __str__(self) -> str:
        return f"[{', '.join(held or '1' for held in self.axes)}]"
