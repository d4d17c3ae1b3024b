"""An evaluation as one self-contained HTML page."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..arrays import Array
from ..errors import ImageError
from ..files import replacing
from ..predictions import THRESHOLD
from ..sources import Sample
from .metrics import BINS, average_precision, binned, confusions, f1, operating_point
from .results import TOP, Evaluation, ModelResults
from .summary import truth_of

PAIRS, IMAGES, MISTAKES = 12, 4, 24  # confused pairs, images of each, mistakes
MATRIX = 20  # classes up to which there is a confusion matrix
POINTS = (0.8, 0.9, 0.95, 0.99)  # specificities of the operating points of two classes
THUMBNAIL = 144  # pixels

# The only script: it filters the rows of a class table by the text typed above it.
SCRIPT = """
for (const input of document.querySelectorAll("input"))
  input.oninput = () => {
    const wanted = input.value.toLowerCase();
    for (const row of input.parentNode.querySelectorAll("tbody tr"))
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  };
"""


def write(evaluation: Evaluation, records: Sequence[Mapping[str, Any]], path: Path, threshold: float = THRESHOLD) -> None:
    """Write the report of an evaluation and its `vgg.evaluation.records`, with the same threshold, whole or not at all."""
    with replacing(path) as file:
        for text in _page(evaluation, records, threshold):
            file.write(text.encode(errors="backslashreplace"))


def _page(evaluation: Evaluation, records: Sequence[Mapping[str, Any]], threshold: float) -> Iterator[str]:
    style = files("vgg.evaluation").joinpath("report.css").read_text("utf-8")
    name, first = escape(evaluation.dataset.name), records[0]
    facts = [
        f"{first['images']:,} images",
        *([f"{first['failed']:,} could not be read"] if first["failed"] else []),
        f"protocol {first['protocol']}",
        *([f"sizes {first['sizes']}"] if first["sizes"] else []),
        *(["with mirrored views"] if first["flip"] else []),
    ]
    yield (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}: evaluation</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n'
        f"<h1>{name}</h1>\n<p>{escape(' · '.join(facts))}</p>\n"
    )
    yield _summary(records)
    for index, results in enumerate(evaluation.results):
        yield f'<h2 id="model-{index}">{escape(evaluation.names[index])}</h2>\n'
        yield from (_several if evaluation.several else _model)(evaluation, results, threshold)
    if evaluation.errors:
        rows = "".join(f"<tr><td>{escape(text)}" for text in evaluation.errors.values())
        yield f'<h2>Images that could not be read</h2>\n<div class="card scroll"><table>{rows}</table></div>\n'
    yield "<footer>Written by <code>vgg evaluate</code>. 95% intervals are DeLong's for AUC, else Wilson's.</footer>\n"
    yield f"<script>{SCRIPT}</script>\n"


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        "top-1": "top1", "top-5": "top5", "balanced accuracy": "balanced_accuracy:.2f%", "ROC AUC": "roc_auc:.2f%",
        "sensitivity": "sensitivity:.2f%", "specificity": "specificity:.2f%", "F1": "f1:.2f%",
        "mean average precision": "map:.2f%", "F1 micro": "f1_micro:.2f%", "F1 macro": "f1_macro:.2f%",
        "ReaL": "real:.2f%", "loss": "cross_entropy:.3f",
        "calibration error": "calibration_error:.2f%", "agreement": "agreement:.2f%", "McNemar's p": "mcnemar:.2g",
        "images/s": "images_per_second:.1f",
    }  # fmt: skip
    rows = []
    for index, one in enumerate(records):
        cells = [_figure(form, one) for form in columns.values()]
        how = f"{one['preprocessing']}, {one['engine']}, {one['param_count']:,.1f} M parameters"
        head = f'<th scope="row"><a href="#model-{index}">{escape(one["model"])}</a><small>{escape(how)}</small></th>'
        rows.append((head, cells))
    kept = [place for place in range(len(columns)) if any(cells[place] for _, cells in rows)]
    heading = "".join(f'<th class="number">{[*columns][place]}</th>' for place in kept)
    numbers = ["".join(f'<td class="number">{cells[place]}</td>' for place in kept) for _, cells in rows]
    body = "".join(f"<tr>{head}{cells}</tr>\n" for (head, _), cells in zip(rows, numbers, strict=True))
    compared = "<p>Agreement and McNemar's exact test compare each model with the first one.</p>" if len(records) > 1 else ""
    return (
        f'<div class="card"><div class="scroll"><table><thead><tr><th>model</th>{heading}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{compared}</div>\n"
    )


def _figure(form: str, record: Mapping[str, Any]) -> str:
    """A figure of a record, if it has it, in a form such as `map:.2f%`: name, format, unit; or an accuracy."""
    name, _, kind = form.partition(":")
    value = record.get(name)
    if value is None:
        return ""
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    interval = "" if low is None else f"<small>{low:.1f}–{high:.1f}</small>"
    if kind:
        images = f"<small>of {record['real_images']:,}</small>" if name == "real" else ""
        return f"{value:{kind.rstrip('%')}}{'%' * kind.endswith('%')}{images}{interval}"
    published = f"<small>published {record[f'published_{name}']:.2f}</small>" if record["published_top1"] else ""
    return f"<b>{value:.2f}%</b>{interval}{published}"


def _several(evaluation: Evaluation, results: ModelResults, threshold: float) -> Iterator[str]:
    """The part of a model whose classes have a score each."""
    readable = np.flatnonzero(evaluation.readable())
    truth, scores = truth_of(evaluation)[readable], results.every[readable]
    chosen, labels = scores > threshold, evaluation.models[0].network.class_names
    rows = []
    for index in np.flatnonzero(truth.any(0)).tolist():
        true, found = truth[:, index], chosen[:, index]
        hits, precision = (true & found).sum(), average_precision(true, scores[:, index])
        others = [f"{share:.0%}" for share in (hits / max(found.sum(), 1), hits / true.sum(), float(f1(true, found)))]
        name = escape(labels.names[index] if labels else f"class {index}")
        rows.append((precision, name, int(true.sum()), [_meter(precision), *others]))
    rows.sort(key=lambda row: row[0])
    yield (
        f'<div class="pair"><div class="card"><h3>Average precision by class</h3><p>Of the {len(rows):,} classes that images '
        f"have, in ascending order.</p>{_classes_plot(np.array([precision for precision, *_ in rows]))}</div></div>\n"
    )
    note = f"<p>Precision, recall and F1 of scores above {threshold:g}.</p>"
    yield _class_table(["average precision", "precision", "recall", "F1"], [row[1:] for row in rows], note)


def _model(evaluation: Evaluation, results: ModelResults, threshold: float) -> Iterator[str]:
    readable = np.flatnonzero(evaluation.readable())
    targets = np.array([sample.target for sample in evaluation.dataset])[readable]
    top, scores = results.top[readable], results.scores[readable]
    right = top[:, 0] == targets
    classes, images = np.unique(targets, return_counts=True)
    hits, hits5 = (
        np.bincount(targets[one], minlength=classes.max() + 1)[classes] for one in (right, (targets == top.T).any(0))
    )
    yield (
        '<div class="pair">\n<div class="card">'
        f"<h3>Reliability</h3><p>Accuracy by the probability of the best class, with its difference from the mean probability "
        f"shaded.</p>{_reliability(binned(scores[:, 0], right))}</div>\n"
        f'<div class="card"><h3>Accuracy by class</h3><p>Top-1 accuracy of the {len(classes):,} '
        f"classes, in ascending order.</p>{_classes_plot(np.sort(hits / images))}</div>\n</div>\n"
    )
    labels = evaluation.models[0].network.class_names

    def label(target: int) -> str:
        return escape(labels.names[target] if labels else f"class {target}")

    def thumbnail(place: int) -> str:
        return _thumbnail(evaluation.dataset.samples[readable[place]])

    pairs = confusions(targets, top[:, 0])
    confused = {target: guess for target, guess, _ in reversed(pairs)}  # the most frequent confusion of each class
    five = evaluation.classes > TOP
    rows = [
        (a / n, label(one), int(n), [_meter(a / n), *[f"{b / n:.0%}"] * five, label(confused[one]) if one in confused else ""])
        for one, n, a, b in zip(classes.tolist(), images, hits, hits5, strict=True)
    ]
    titles = ["top-1", *["top-5"] * five, "most frequent confusion"]
    yield _class_table(titles, [row[1:] for row in sorted(rows, key=lambda row: row[0])])
    predicted, note = top[:, 0], ""
    if evaluation.classes == len(classes) == 2 and results.every.shape[1]:
        positive = results.every[readable][:, 1]
        predicted, note = (positive > threshold).astype(np.int64), f", {label(1)} for scores above {threshold:g}"
        yield _operating_points(targets == 1, positive, label(1))
    if evaluation.classes <= MATRIX:
        yield _matrix(targets, predicted, [label(target) for target in range(evaluation.classes)], note)
    if not pairs:
        return
    yield '<div class="card"><h3>Most frequent confusions</h3><p>True class and predicted class.</p><div class="pairs">\n'
    for target, guess, places in pairs[:PAIRS]:
        yield (
            f'<div><span class="truth">{label(target)}</span> classified as <span class="guess">{label(guess)}</span>, '
            f"{len(places):,} of {np.sum(targets == target):,}"
            f'<div class="strip">{"".join(map(thumbnail, places[:IMAGES]))}</div></div>\n'
        )
    yield '</div></div>\n<div class="card"><h3>Most confident mistakes</h3>'
    yield '<p>Predicted class with its probability, and true class.</p><div class="gallery">\n'
    for place in sorted(np.flatnonzero(~right).tolist(), key=lambda place: -float(scores[place, 0]))[:MISTAKES]:
        yield (
            f'<figure>{thumbnail(place)}<figcaption><span class="guess">{scores[place, 0]:.1%} {label(top[place, 0])}</span>'
            f'<br><span class="truth">{label(targets[place])}</span></figcaption></figure>\n'
        )
    yield "</div></div>\n"


def _reliability(sums: Array) -> str:
    """Accuracy by probability as bars, with the diagonal of perfect calibration, above the number of images in each bin."""
    width, height, foot = 480, 260, 60  # foot: height of the histogram
    most, step = max(sums[0].max(), 1), width / BINS
    parts = [_axis(width, height)]
    for index in np.flatnonzero(sums[0]).tolist():
        count, confidence, accuracy = (float(one) for one in sums[:, index] / [1, sums[0, index], sums[0, index]])
        x, inner, low, top = index * step + 1, step - 2, min(confidence, accuracy), max(confidence, accuracy)
        text = f"{index / BINS:.0%}–{(index + 1) / BINS:.0%}: {count:,.0f} images, accuracy {accuracy:.1%}, "
        parts.append(
            f"<g><title>{text}mean probability {confidence:.1%}</title>"
            f"{_rectangle('bar', x, height * (1 - accuracy), inner, height * accuracy)}"
            f"{_rectangle('gap', x, height * (1 - top), inner, height * (top - low))}"
            f"{_rectangle('share', x, height + 34, inner, foot * count / most)}</g>"
        )
    parts.append(f'<line class="ideal" x1="0" y1="{height}" x2="{width}" y2="0"/>')
    parts += [f'<text x="{share * width}" y="{height + 18}" text-anchor="middle">{share:.0%}</text>' for share in (0, 0.5, 1)]
    parts.append(f'<text x="{width / 4}" y="{height + 18}" text-anchor="middle">probability</text>')
    label = "Reliability diagram: accuracy by probability, and number of images"
    return f'<svg viewBox="-34 -8 {width + 44} {height + 40 + foot}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _classes_plot(shares: Array) -> str:
    width, height = 480, 260
    steps = np.linspace(0, width, len(shares) + 1)
    outline = "".join(f"L{a:.1f} {height * (1 - y):.1f}H{b:.1f}" for a, b, y in zip(steps, steps[1:], shares, strict=False))
    ends = f"{np.mean(shares == 0):.1%} of the classes at 0%, {np.mean(shares == 1):.1%} at 100%"
    return (
        f'<svg viewBox="-34 -8 {width + 44} {height + 40}" role="img" aria-label="Accuracy of each class, sorted">'
        f'{_axis(width, height)}<path class="bar" d="M0 {height}{outline}V{height}Z"/>'
        f'<text x="0" y="{height + 18}">median {np.median(shares):.1%}; {ends}</text></svg>'
    )


def _axis(width: int, height: int) -> str:
    return "".join(
        f'<line class="grid" x1="0" x2="{width}" y1="{height * (1 - share)}" y2="{height * (1 - share)}"/>'
        f'<text x="-6" y="{height * (1 - share) + 4}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _meter(share: float) -> str:
    return f'<span class="meter"><i style="width:{share:.1%}"></i></span> {share:.0%}'


def _class_table(titles: Sequence[str], rows: Sequence[tuple[str, int, Sequence[str]]], note: str = "") -> str:
    """A table of classes: name, number of images, and a cell for each title."""
    kinds = [' class="number"' if title in ("top-5", "precision", "recall", "F1") else "" for title in titles]
    heading = "".join(f"<th{kind}>{title}" for kind, title in zip(kinds, titles, strict=True))
    body = "".join(
        f'<tr><td>{name}<td class="number">{count:,}'
        + "".join(f"<td{kind}>{cell}" for kind, cell in zip(kinds, cells, strict=True))
        + "\n"
        for name, count, cells in rows
    )
    return (
        f'<div class="card"><h3>Classes</h3>{note}<input type="search" placeholder="Filter classes" '
        'aria-label="Filter classes"><div class="classes"><table><thead><tr><th>class<th class="number">images'
        f"{heading}</thead><tbody>\n{body}</tbody></table></div></div>\n"
    )


def _matrix(targets: Array, predicted: Array, names: Sequence[str], note: str) -> str:
    """The confusion matrix: a row for each true class, shaded by its share of the row."""
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    rows = []
    for name, row in zip(names, counts.tolist(), strict=True):
        cells = "".join(f'<td class="number" style="--share:{count / max(sum(row), 1):.0%}">{count:,}' for count in row)
        rows.append(f'<tr><th scope="row">{name}{cells}\n')
    heading = "".join(f'<th class="number">{name}' for name in names)
    return (
        '<div class="card"><h3>Confusion matrix</h3><p>Number of images by true class (rows) and predicted class (columns'
        f'{note}), shaded by the share of the true class.</p><div class="scroll"><table class="matrix">'
        f"<thead><tr><th>{heading}</thead><tbody>\n{''.join(rows)}</tbody></table></div></div>\n"
    )


def _operating_points(truth: Array, scores: Array, name: str) -> str:
    """A table of thresholds for two classes, with the highest sensitivity at some specificities."""
    rows = "".join(
        f'<tr><td>at least {least:.0%}<td class="number">{threshold:.9g}<td class="number">{sensitivity:.1%}'
        f'<td class="number">{specificity:.1%}\n'
        for least in POINTS
        for threshold, sensitivity, specificity in [operating_point(truth, scores, least)]
    )
    return (
        f'<div class="card"><h3>Operating points</h3><p>Thresholds of the score of {name}, the positive class, chosen on these '
        'images.</p><div class="scroll"><table><thead><tr><th>specificity<th class="number">threshold<th class="number">'
        f'sensitivity<th class="number">specificity reached</thead><tbody>\n{rows}</tbody></table></div></div>\n'
    )


def _thumbnail(sample: Sample) -> str:
    """An image as a small square inside the page; a placeholder if it can't be read any more."""
    name = escape(sample.name)
    try:
        image = ImageOps.fit(sample.image(), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    except ImageError:
        return f'<img alt="{name}">'
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f'<img alt="{name}" title="{name}" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
