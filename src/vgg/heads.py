"""The head of a network as data: what follows the convolutions, in the order of execution.

A head has a text form: items separated by commas. The first item is the pooling, each further one a linear layer with its
number of units and what follows it. The last linear layer has `classes` units:

    average, 256 relu dropout 0.5, classes
    flatten batch-norm, 512 leaky-relu 0.1, 128 gelu, classes sigmoid

`fc` and `gap` name two heads, that of the paper and global average pooling with one linear layer; `none` is no head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .errors import ModelError

Pooling = Literal["flatten", "average", "max"]
Output = Literal["softmax", "sigmoid", "binary"]
OUTPUTS: tuple[Output, ...] = ("softmax", "sigmoid", "binary")
# Activation functions, each with its number if none is given: the slope of `leaky_relu` and the factor of `elu`.
ACTIVATIONS = {
    "relu": 0.0, "leaky_relu": 0.01, "elu": 1.0, "gelu": 0.0, "gelu_tanh": 0.0, "silu": 0.0, "tanh": 0.0, "sigmoid": 0.0,
}  # fmt: skip
WITH_NUMBER = ("leaky_relu", "elu", "dropout")
NONE = "none"  # the text of no head


@dataclass(frozen=True)
class Step:
    """An operation of a head: `linear`, `batch_norm`, `dropout` or one of ACTIVATIONS."""

    operation: str
    # Of `linear`, the number of units, 0 for the last one; of `dropout`, the probability, None for that of the recipe.
    number: float | None = 0.0


@dataclass(frozen=True)
class Head:
    """A pooling, linear layers with activations, and the meaning of the output. Raises ModelError if they form no head."""

    steps: tuple[Step, ...]
    pooling: Pooling = "flatten"  # `flatten`: none; `average` and `max`: over the whole map, or to `side` x `side` positions
    side: int = 1
    # Scores of the classes: `softmax`: of one class of many; `sigmoid`: of each class by itself; `binary`: one unit for two
    # classes, of which the second has the sigmoid as its score.
    output: Output = "softmax"

    def __post_init__(self) -> None:
        numbers = [(step.operation, step.number) for step in self.steps if step.number is not None]
        if not all(0 <= number < 1 if operation == "dropout" else math.isfinite(number) for operation, number in numbers):
            rule = "the probability of dropout is 0 or more and below 1, and numbers are finite"
            raise ModelError(f"invalid head {self.text!r}: {rule}")
        units = [step.number for step in self.steps if step.operation == "linear"]
        if not units or units[-1] != 0 or not all(units[:-1]):
            raise ModelError(f"invalid head {self.text!r}: only its last linear layer has `classes` as its number of units")
        if self.side < 1 or (self.pooling == "max" and self.side > 1) or (self.pooling == "flatten" and self.side != 1):
            raise ModelError(f"invalid head {self.text!r}: average pools to any number of positions, max to one")
        for item in self.items:
            found = [step.operation for step in item if step.operation != "dropout"]
            activations = [one for one in found if one in ACTIVATIONS]
            if len(activations) > ("linear" in found) or found.count("batch_norm") > 1:
                raise ModelError(f"invalid head {self.text!r}: a linear layer has one activation and one batch normalisation")
        if (found[-1:] == ["batch_norm"] and activations) or self.steps[-1].operation == "dropout":
            raise ModelError(f"invalid head {self.text!r}: its output is that of a linear layer or activation")

    @property
    def items(self) -> list[list[Step]]:
        """The steps, grouped: those before the first linear layer, then each linear layer with those that follow it."""
        items: list[list[Step]] = [[]]
        for step in self.steps:
            if step.operation == "linear":
                items.append([])
            items[-1].append(step)
        return items

    @property
    def maps(self) -> bool:
        """Whether the first linear layer reads a map, so that the size of the input is fixed."""
        return self.pooling == "flatten"

    @property
    def text(self) -> str:
        """The text form."""
        items = [[_text(step) for step in item] for item in self.items]
        items[0].insert(0, self.pooling + (f" {self.side}" if self.side > 1 else ""))
        if self.output != "softmax" or (items[-1][-1] in OUTPUTS):
            items[-1].append(self.output)
        return ", ".join(" ".join(item) for item in items if item != ["flatten"])

    def bare(self) -> "Head":
        """The head without dropout, which changes nothing at inference."""
        return replace(self, steps=tuple(step for step in self.steps if step.operation != "dropout"))

    def scaled(self, units: int) -> "Head":
        """The head with this number of units in each hidden layer."""
        steps = (replace(step, number=units) if step.operation == "linear" and step.number else step for step in self.steps)
        return replace(self, steps=tuple(steps))


HIDDEN = 4096  # units of fc6 and fc7 in the paper
DROPOUT = Step("dropout", None)
FC = Head((Step("linear", HIDDEN), Step("relu"), DROPOUT, Step("linear", HIDDEN), Step("relu"), DROPOUT, Step("linear")))
GAP = Head((DROPOUT, Step("linear")), "average")
NAMED = {"fc": FC, "gap": GAP}


def parse(text: str) -> Head:
    """The head in a text, `fc` and `gap` included. Raises ModelError if the text is no head."""
    if text in NAMED:
        return NAMED[text]
    items = [item.split() for item in text.lower().split(",")]
    pooling, side = "flatten", 1
    steps: list[Step] = []
    output: Output = "softmax"
    try:
        if items[0] and items[0][0] in ("flatten", "average", "max"):
            pooling, *rest = items[0]
            if rest and rest[0].isdigit():
                side = int(rest.pop(0))
            steps += _steps(rest)
            items = items[1:]
        if items and items[-1] and items[-1][-1] in OUTPUTS:
            output = items[-1].pop()  # type: ignore[assignment]
        for number, *rest in items:
            steps += [Step("linear", 0 if number == "classes" else _units(number)), *_steps(rest)]
    except ValueError as error:
        detail = f": {error}" if str(error).startswith("unknown") else ""
        raise ModelError(f"invalid head {text!r}{detail}; an example is 'average, 256 relu dropout 0.5, classes'") from None
    return Head(tuple(steps), pooling, side, output)  # type: ignore[arg-type]


def _units(word: str) -> int:
    if not word.isdigit() or not 0 < int(word) < 2**24:
        raise ValueError(f"unknown number of units {word!r}")
    return int(word)


def _steps(words: list[str]) -> Iterator[Step]:
    while words:
        operation = words.pop(0).replace("-", "_")
        if operation not in (*ACTIVATIONS, "batch_norm", "dropout"):
            known = ", ".join(_word(name) for name in (*ACTIVATIONS, "batch_norm", "dropout"))
            raise ValueError(f"unknown operation {_word(operation)!r}, not one of {known}")
        number = ACTIVATIONS.get(operation, None if operation == "dropout" else 0.0)
        if operation in WITH_NUMBER and words and words[0][:1].isdigit():
            number = float(words.pop(0))
        yield Step(operation, number)


def _word(operation: str) -> str:
    return operation.replace("_", "-")


def _text(step: Step) -> str:
    """A step as text, with its number unless that is implied."""
    if step.operation == "linear":
        return f"{step.number:.0f}" if step.number else "classes"
    implied = step.operation not in WITH_NUMBER or step.number in (None, ACTIVATIONS.get(step.operation))
    return _word(step.operation) + ("" if implied else f" {step.number:.9g}")
