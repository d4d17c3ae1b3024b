"""What a written ONNX file should be like, as one value."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ModelError


@dataclass(frozen=True)
class OnnxOptions:
    """The options of `Network.write` that only an ONNX file has; see there.

    Raises:
        ModelError: they contradict each other.
    """

    opset: int | None = None
    outputs: tuple[str, ...] = ()
    softmax: bool = False
    batch: int | None = None
    dense: bool = False
    bits: int = 32
    names: Literal["paper", "zoo"] = "paper"
    preprocessing: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (16, 32):
            raise ModelError(f"an ONNX file holds floats of 16 or 32 bits, not {self.bits}")
        if self.batch is not None and self.batch < 1:
            raise ModelError(f"a batch holds 1 image or more, not {self.batch}")
        if self.names not in ("paper", "zoo"):
            raise ModelError(f"tensors are named as in the paper or as in the zoo, not as in {self.names!r}")
        if self.dense and self.preprocessing:
            raise ModelError("the dense form takes pictures of any size, and preprocessing in the graph crops them to one")
