"""The history of a training run: a line for each epoch, log.csv, TensorBoard's events, and curves.png."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error
from ..files import reason, replacing, write_csv

Row = dict[str, float]  # an epoch, by these names, which are the columns of log.csv
COLUMNS = (
    "epoch", "lr", "loss", "val_loss", "val_top1", "val_top5", "val_f1", "val_exact", "val_balanced", "val_auc",
    "val_sensitivity", "val_specificity", "seconds", "images_per_second", "waited", "time",
)  # fmt: skip
TITLES = {
    "val_top1": "top-1", "val_f1": "F1", "val_balanced": "balanced accuracy", "val_auc": "AUC", "val_loss": "validation loss",
    "val_sensitivity": "sensitivity", "val_specificity": "specificity",
}  # fmt: skip
# The measures that decide which epoch is the best, by the recipe's `best`; a run has one of each.
DECISIVE = {"accuracy": ("val_top1", "val_f1"), "balanced": ("val_balanced",), "auc": ("val_auc",), "loss": ("val_loss",)}


def decisive(row: Row, best: str) -> str:
    """The name of the measure that decides, by the recipe's `best`."""
    return next(name for name in DECISIVE[best] if name in row)


def quality(row: Row, best: str) -> float:
    """The value of the measure that decides, by the recipe's `best`, or of the loss if it is undefined; higher is better."""
    value = row[decisive(row, best)]
    return -row["val_loss"] if best == "loss" or math.isnan(value) else value


def shown(row: Row, best: str) -> list[str]:
    """An epoch's main measures: the one that decides, and accuracy; of two classes, AUC, sensitivity and specificity."""
    two = ["val_auc", "val_sensitivity", "val_specificity"]
    others = two if two[-1] in row else [decisive(row, "accuracy")]
    return list(dict.fromkeys([decisive(row, best), *others]))


def is_validated(row: Row) -> bool:
    """Whether an epoch was measured on validation images."""
    return not math.isnan(row["val_loss"])


def measures_text(row: Row, best: str) -> str:
    """An epoch's main measures as text: `top-1 72.63%`."""
    if not is_validated(row):
        return "not validated"
    return ", ".join(
        f"{TITLES[name]} {row[name]:.4f}" if name == "val_loss" else f"{TITLES[name]} {row[name]:.2f}%"
        for name in shown(row, best)
        if not math.isnan(row[name])
    )


def epoch_line(row: Row, epochs: int, best: str) -> str:
    """An epoch in one line."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}} of {epochs}: loss {row['loss']:.4f}, {measures_text(row, best)}, "
        f"lr {row['lr']:.2g}, {row['images_per_second']:,.0f} images/s, {row['waited']:.1%} of the time waiting for images"
    )


def write_log(folder: Path, history: Sequence[Row]) -> None:
    """Write log.csv, and the same for TensorBoard. Raises Error if they can't be written."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    write_csv(folder / "log.csv", history[0], (row.values() for row in history))
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


def kept_row(history: Sequence[Row], best: str) -> Row:
    """The epoch whose network is kept: the best one by the recipe's `best`; the last one if none was validated.

    Of epochs that are equal, it is the one with the lowest validation loss, and of those the first.
    """
    validated = list(filter(is_validated, history))
    return max(validated, key=lambda row: (quality(row, best), -row["val_loss"])) if validated else history[-1]


def has_stalled(patience: int, history: Sequence[Row], best: str) -> bool:
    """Whether the measure that decides has not improved for `patience` epochs; with 0 or without validation, never."""
    validated = [index for index, row in enumerate(history) if is_validated(row)]
    if not patience or not validated:
        return False
    place = max(validated, key=lambda index: quality(history[index], best))
    return len(history) - 1 - place >= patience


def draw_curves(folder: Path, history: Sequence[Row], best: str) -> None:
    """Draw curves.png: losses and main measures by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, measures = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    losses.plot(epochs, [row["loss"] for row in history], label="training")
    losses.plot(epochs, [row["val_loss"] for row in history], label="validation")
    losses.set(xlabel="epoch", ylabel="loss")
    names = [name for name in shown(history[0], best) if name != "val_loss"]
    for index, name in enumerate(names, 1):
        measures.plot(epochs, [row[name] for row in history], color=f"C{index}", label=TITLES[name])
    measures.set(xlabel="epoch", ylabel=f"{TITLES[names[0]]}, %" if len(names) == 1 else "%")
    row, name = kept_row(history, best), names[0]
    place = {"xytext": (0, -6), "textcoords": "offset points", "ha": "right", "va": "top"}
    if not math.isnan(row[name]):
        measures.annotate(f"{row[name]:.2f}%", (row["epoch"], row[name]), **place)
    for axes in (losses, measures):
        axes.grid(alpha=0.3)
    for axes in (losses, measures)[: len(names)]:
        axes.legend()
    with replacing(folder / "curves.png") as file:
        figure.savefig(file, format="png", dpi=120)
