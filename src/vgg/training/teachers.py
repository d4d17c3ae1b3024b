"""Teachers that look at the very pictures the student is given."""

from collections.abc import Sequence

import torch

from ..module import Module, results
from ..network import Network
from .pictures import normalised


class Teachers:
    """Networks whose scores are learnt, computed anew in each step, of its pictures as they are: cropped, coloured, and mixed.

    So a student never sees the same twice, and learns from mixed pictures, too, what its teachers really make of them; Beyer et
    al., arXiv 2106.05237, found both to matter. `Cache` is for those who look at fixed views, once.

    Args:
        networks: the teachers; they know the same classes.
        matched: values of the first one that are wanted, too.
        device: where they compute.
        layout: of the pictures in memory.
    """

    def __init__(
        self, networks: Sequence[Network], matched: tuple[str, ...], device: torch.device, layout: torch.memory_format
    ) -> None:
        self._matched, self._layout = matched, layout
        self._taught = []
        for network in networks:
            module = Module(network.architecture)
            module.load(network.expanded())
            module.eval().requires_grad_(False)
            self._taught.append((module.to(device, memory_format=layout), network.preprocessing))  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor, temperature: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The mean of the teachers' softened scores [batch, classes], and the first one's values that are matched, float32.

        Args:
            pictures: float32 [batch, 3, side, side], RGB, 0..255.
            temperature: by which the logits are divided.
        """
        scores, values = [], list[torch.Tensor]()
        for module, preprocessing in self._taught:
            inputs = normalised(pictures, preprocessing).contiguous(memory_format=self._layout)
            logits, *matched = results(module, inputs, () if values else self._matched)
            values = values or [value.float() for value in matched]
            scores.append((logits.float() / temperature).softmax(1))
        return torch.stack(scores).mean(0), values
