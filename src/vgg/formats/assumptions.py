"""The notice of what is assumed of a file that doesn't describe itself."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from ..architectures import Architecture
from ..errors import Notice
from .layouts import Bare


def warn(path: Path, content: Bare, preset: str, imagenet: bool, given: Collection[str]) -> None:
    """State what is assumed of a file, except what is given.

    Args:
        path: the file.
        content: the content, as its reader returns it.
        preset: name of the preset that is used.
        imagenet: ImageNet's labels are used.
        given: see `vgg.formats.read`.
    """
    side = content.architecture.input_size
    # A head or a preset that is given usually implies the size.
    implied = content.sized or "head" in given or ("preprocessing" in given and side == Architecture.input_size)
    assumed = [  # what is missing, what is used, and the option that sets it
        entry
        for name, missing, *entry in (
            ("preprocessing", not content.preprocessing, "preprocessing", f"preprocessing {preset!r}", "--preset"),
            ("labels", imagenet and not content.labels, "labels", "ImageNet's labels", "--labels"),
            ("input_size", not implied, "input size", f"{side} x {side} pixels", "--input-size"),
        )
        if missing and name not in given
    ]
    parts = []
    if assumed:
        lacks, used, options = zip(*assumed, strict=True)
        parts.append(f"no {_listed(lacks, 'or')} in the file; using {_listed(used)}. Set with {_listed(options)}")
    if content.assumed and "head" not in given:
        advice = f". Set with --head{' and --output-activation' * ('output' not in given)}"
        advice = advice if content.architecture.classifier else ""
        parts.append(f"assumed {content.assumed}{advice}")
    if parts:
        warnings.warn(Notice(f"{path}: {'; '.join(parts)}"), stacklevel=4)


def _listed(words: Sequence[str], last: str = "and") -> str:
    """Words as in a sentence: `a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
