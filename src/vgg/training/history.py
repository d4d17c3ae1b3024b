"""The history of a training run: a line for each epoch, log.csv, TensorBoard's events, and curves.png."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error
from ..files import reason, replacing

Row = dict[str, float]  # an epoch, by these names, which are the columns of log.csv
COLUMNS = (
    "epoch", "lr", "loss", "val_loss", "val_top1", "val_top5", "val_f1", "val_exact", "seconds", "images_per_second", "waited",
    "time",
)  # fmt: skip
# The measures that decide which epoch is the best; a run has one of them.
ACCURACIES = {"val_top1": "top-1", "val_f1": "F1"}


def accuracy(row: Row) -> float:
    """The validation accuracy of an epoch in percent: top-1, or F1 if images have several labels."""
    return next(row[name] for name in ACCURACIES if name in row)


def accuracy_text(row: Row) -> str:
    """The validation accuracy of an epoch as text: `top-1 72.63%`."""
    return f"{_title(row)} {accuracy(row):.2f}%"


def _title(row: Row) -> str:
    return next(title for name, title in ACCURACIES.items() if name in row)


def epoch_line(row: Row, epochs: int) -> str:
    """An epoch in one line."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}} of {epochs}: loss {row['loss']:.4f}, {accuracy_text(row)}, "
        f"lr {row['lr']:.2g}, {row['images_per_second']:,.0f} images/s, {row['waited']:.1%} of the time waiting for images"
    )


def write_log(folder: Path, history: Sequence[Row]) -> None:
    """Write log.csv, and the same for TensorBoard. Raises Error if they can't be written."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    with replacing(folder / "log.csv") as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        table = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(history)
        text.detach()
    path = folder / "tensorboard" / "events.out.tfevents.vgg"  # one file, so that a resumed run has each epoch once
    try:
        path.parent.mkdir(exist_ok=True)
        writer = RecordWriter(str(path))  # SummaryWriter's own thread would hang on a full disk
        writer.write(Event(wall_time=history[0]["time"], file_version="brain.Event:2").SerializeToString())
        for row in history:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
            event = Event(wall_time=row["time"], step=int(row["epoch"]), summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.close()
    except OSError as error:
        raise Error(f"{path}: can't be written: {reason(error)}") from None


def is_better(row: Row, other: Row) -> bool:
    """Whether an epoch's validation accuracy is higher than another's or, if they are equal, its loss is lower."""
    return (accuracy(row), -row["val_loss"]) > (accuracy(other), -other["val_loss"])


def best_row(history: Sequence[Row], validated: bool) -> Row:
    """The epoch whose network is kept: the first of the best ones or, without validation images, the last one."""
    return max(history, key=lambda row: (accuracy(row), -row["val_loss"])) if validated else history[-1]


def has_stalled(patience: int, history: Sequence[Row]) -> bool:
    """Whether the validation accuracy has not risen for `patience` epochs; with 0, never."""
    if not patience or not history:
        return False
    best = max(range(len(history)), key=lambda index: accuracy(history[index]))
    return len(history) - 1 - best >= patience


def draw_curves(folder: Path, history: Sequence[Row]) -> None:
    """Draw curves.png: losses and accuracies by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    losses.plot(epochs, [row["loss"] for row in history], label="training")
    losses.plot(epochs, [row["val_loss"] for row in history], label="validation")
    losses.set(xlabel="epoch", ylabel="loss")
    accuracies.plot(epochs, [accuracy(row) for row in history], color="C1")
    accuracies.set(xlabel="epoch", ylabel=f"{_title(history[0])}, %")
    best = max(history, key=accuracy)
    place = {"xytext": (0, -6), "textcoords": "offset points", "ha": "right", "va": "top"}
    accuracies.annotate(f"{accuracy(best):.2f}%", (best["epoch"], accuracy(best)), **place)
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    losses.legend()
    with replacing(folder / "curves.png") as file:
        figure.savefig(file, format="png", dpi=120)
