"""Stand-in for the engines' differences and moments, until they have them."""

from typing import Any

import numpy as np


def differences(engine: Any, batch: Any, pairs: Any, layers: Any, kind: str = "cosine") -> Any:
    values, found = engine.run(batch, tuple(layers)), {}
    for name, weight in layers.items():
        value = values[name]
        if kind == "cosine":
            value = value / (np.sqrt(np.square(value).sum(1, keepdims=True)) + np.float32(1e-10))
        changes = [value[a] - value[b] for a, b in pairs]
        found[name] = np.stack([np.tensordot(weight, np.abs(one) if kind == "l1" else np.square(one), 1) for one in changes])
    return found


def moments(engine: Any, batch: Any, pairs: Any, layers: Any, area: Any = None) -> Any:
    values, found = engine.run(batch, tuple(layers)), {}
    for name in layers:
        top, left, bottom, right = area[name]
        value = values[name][:, :, top:bottom, left:right].astype(np.float64)
        found[name] = np.stack(
            [[one.sum((1, 2)) for one in (a, b, a * a, b * b, a * b)] for a, b in ((value[i], value[j]) for i, j in pairs)]
        )
    return found
