"""Progress reports of long work. The library only calls a `Progress`; the command line draws it."""

from typing import Protocol


class Progress(Protocol):
    """A function that is called as work advances."""

    def __call__(self, task: str, done: int, total: int | None, unit: str = "", /) -> object:
        """Report progress.

        Args:
            task: what is being done, such as `Evaluating`. Tasks with different names are separate.
            done: how much of it is done, in units.
            total: how much there is; None when that is unknown.
            unit: `bytes`, or empty for things that are counted, such as images.
        """
        ...


def silent(task: str, done: int, total: int | None, unit: str = "", /) -> None:
    """Report nothing."""
