"""An evaluation as one HTML page that needs nothing beside it: no other file, no other host."""

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
from .metrics import BINS, Bin, calibration, confusions
from .run import Answers, Run

PAIRS, PICTURES, MISTAKES = 12, 4, 24  # confused pairs, pictures of each, worst mistakes
THUMBNAIL = 144  # pixels

# The only script: it hides the rows of a class table that don't have what is typed above it.
SCRIPT = """
for (const input of document.querySelectorAll("input"))
  input.oninput = () => {
    const wanted = input.value.toLowerCase();
    for (const row of input.parentNode.querySelectorAll("tbody tr"))
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  };
"""


def write(run: Run, records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the report, whole or not at all. `records` are those of `vgg.evaluation.records`."""
    with replacing(path) as file:
        for text in _page(run, records):
            file.write(text.encode())


def _page(run: Run, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    style = files("vgg.evaluation").joinpath("report.css").read_text("utf-8")
    first = records[0]
    told = [
        f"{first['images']:,} pictures",
        *([f"{first['failed']:,} could not be read"] if first["failed"] else []),
        f"protocol {first['protocol']}",
        *([f"sizes {first['sizes']}"] if first["sizes"] else []),
        *(["flipped"] if first["flip"] else []),
    ]
    yield (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(run.dataset.name)}: evaluation</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n'
        f"<h1>{escape(run.dataset.name)}</h1>\n<p>{escape(' · '.join(told))}</p>\n"
    )
    yield _summary(records)
    for index, answers in enumerate(run.answers):
        yield from _model(run, index, answers)
    if run.errors:
        rows = "".join(f"<tr><td>{escape(text)}" for text in run.errors.values())
        yield f'<h2>Pictures that could not be read</h2>\n<div class="card scroll"><table>{rows}</table></div>\n'
    yield "<footer>Written by <code>vgg evaluate</code>. Intervals are Wilson's, at 95%.</footer>\n"
    yield f"<script>{SCRIPT}</script>\n"


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    columns = ["top-1", "top-5", "ReaL", "loss", "calibration error", "agreement", "McNemar's p", "images/s"]
    rows = []
    for index, one in enumerate(records):
        cells = [
            *(
                f"<b>{one[name]:.2f}%</b><small>{one[f'{name}_low']:.1f}–{one[f'{name}_high']:.1f}</small>"
                + (f"<small>published {one[f'published_{name}']:.2f}</small>" if one["published_top1"] else "")
                for name in ("top1", "top5")
            ),
            "" if one["real"] is None else f"{one['real']:.2f}%<small>of {one['real_images']:,}</small>",
            f"{one['cross_entropy']:.3f}",
            f"{one['calibration_error']:.2f}%",
            "" if one["agreement"] is None else f"{one['agreement']:.2f}%",
            "" if one["mcnemar"] is None else f"{one['mcnemar']:.2g}",
            "" if one["images_per_second"] is None else f"{one['images_per_second']:.1f}",
        ]
        how = f"{one['preprocessing']}, {one['engine']}, {one['param_count']:,.1f} M parameters"
        head = f'<th scope="row"><a href="#model-{index}">{escape(one["model"])}</a><small>{escape(how)}</small></th>'
        rows.append((head, cells))
    kept = [place for place in range(len(columns)) if any(cells[place] for _, cells in rows)]
    heading = "".join(f'<th class="number">{columns[place]}</th>' for place in kept)
    numbers = ["".join(f'<td class="number">{cells[place]}</td>' for place in kept) for _, cells in rows]
    body = "".join(f"<tr>{head}{cells}</tr>\n" for (head, _), cells in zip(rows, numbers, strict=True))
    compared = "<p>Agreement and McNemar's exact test compare a model with the first one.</p>" if len(records) > 1 else ""
    return (
        f'<div class="card"><div class="scroll"><table><thead><tr><th>model</th>{heading}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{compared}</div>\n"
    )


def _model(run: Run, index: int, answers: Answers) -> Iterator[str]:
    read = np.flatnonzero(run.read())
    targets = np.array([sample.target for sample in run.dataset])[read]
    top, scores = answers.top[read], answers.scores[read]
    right = top[:, 0] == targets
    error, bins = calibration(scores[:, 0], right)
    yield f'<h2 id="model-{index}">{escape(run.names[index])}</h2>\n<div class="pair">\n'
    yield (
        f'<div class="card"><h3>Reliability</h3><p>How often the best class is right, by its probability. Calibration error '
        f"{100 * error:.2f}%.</p>{_reliability(bins)}</div>\n"
    )
    classes, pictures = np.unique(targets, return_counts=True)
    hits = np.bincount(targets[right], minlength=classes.max() + 1)[classes]
    hits5 = np.bincount(targets[(top == targets[:, None]).any(1)], minlength=classes.max() + 1)[classes]
    yield (
        f'<div class="card"><h3>Classes</h3><p>The accuracy of each of the {len(classes):,} classes, in order.</p>'
        f"{_classes_plot(np.sort(hits / pictures))}</div>\n</div>\n"
    )
    pairs = confusions(targets, top[:, 0])
    taken: dict[int, int] = {}
    for target, guess, _ in pairs:
        taken.setdefault(target, guess)
    rows = [
        (_name(run, one), int(n), int(a), int(b), _name(run, taken[one]) if one in taken else "")
        for one, n, a, b in zip(classes.tolist(), pictures, hits, hits5, strict=True)
    ]
    yield _class_table(sorted(rows, key=lambda row: row[2] / row[1]))
    if pairs:
        yield '<div class="card"><h3>Most often confused</h3><p>A class, and what it was taken for.</p><div class="pairs">\n'
        for target, guess, places in pairs[:PAIRS]:
            yield (
                f'<div><span class="truth">{escape(_name(run, target))}</span> taken for <span class="guess">'
                f'{escape(_name(run, guess))}</span>, {len(places):,} of {np.sum(targets == target):,}<div class="strip">'
                f"{''.join(_thumbnail(run, int(read[place])) for place in places[:PICTURES])}</div></div>\n"
            )
        yield '</div></div>\n<div class="card"><h3>Worst mistakes</h3><p>Wrong, and sure of it.</p><div class="gallery">\n'
        for place in sorted(np.flatnonzero(~right), key=lambda place: -scores[place, 0])[:MISTAKES]:
            yield (
                f'<figure>{_thumbnail(run, int(read[place]))}<figcaption><span class="guess">{scores[place, 0]:.1%} '
                f'{escape(_name(run, top[place, 0]))}</span><br><span class="truth">{escape(_name(run, targets[place]))}</span>'
                f"</figcaption></figure>\n"
            )
        yield "</div></div>\n"


def _reliability(bins: Sequence[Bin]) -> str:
    """Accuracy by confidence, as bars up to the diagonal that would be perfect; below, how many pictures each bin has."""
    width, height, foot = 480, 260, 60  # of the diagram, and of the histogram below it
    total, step = max(max(one.count for one in bins), 1), width / BINS
    parts = [_axis(width, height)]
    for index, one in enumerate(bins):
        x, inner = index * step + 1, step - 2
        if one.count:
            said = f"{one.low:.0%}–{one.high:.0%}: {one.count:,} pictures, {one.accuracy:.1%} right, {one.confidence:.1%} sure"
            top, sure = height * (1 - one.accuracy), height * (1 - one.confidence)
            tall = foot * one.count / total
            parts.append(
                f"<g><title>{said}</title>{_rectangle('bar', x, top, inner, height - top)}"
                f"{_rectangle('gap', x, min(top, sure), inner, abs(top - sure))}"
                f"{_rectangle('share', x, height + 34, inner, tall)}</g>"
            )
    parts.append(f'<line class="ideal" x1="0" y1="{height}" x2="{width}" y2="0"/>')
    parts += [f'<text x="{share * width}" y="{height + 18}" text-anchor="middle">{share:.0%}</text>' for share in (0, 0.5, 1)]
    parts.append(f'<text x="{width / 4}" y="{height + 18}" text-anchor="middle">probability</text>')
    label = "Reliability diagram: accuracy by probability, and the number of pictures"
    return f'<svg viewBox="-34 -8 {width + 44} {height + 40 + foot}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _classes_plot(shares: Array) -> str:
    width, height = 480, 260
    steps = np.linspace(0, width, len(shares) + 1)
    outline = "".join(f"L{a:.1f} {height * (1 - y):.1f}H{b:.1f}" for a, b, y in zip(steps, steps[1:], shares, strict=False))
    never, always = np.mean(shares == 0), np.mean(shares == 1)
    said = f"median {np.median(shares):.1%}; {never:.1%} of the classes are never right, {always:.1%} always"
    return (
        f'<svg viewBox="-34 -8 {width + 44} {height + 40}" role="img" aria-label="Accuracy of each class, sorted">'
        f'{_axis(width, height)}<path class="bar" d="M0 {height}{outline}V{height}Z"/>'
        f'<text x="0" y="{height + 18}">{said}</text></svg>'
    )


def _axis(width: int, height: int) -> str:
    return "".join(
        f'<line class="grid" x1="0" x2="{width}" y1="{height * (1 - share)}" y2="{height * (1 - share)}"/>'
        f'<text x="-6" y="{height * (1 - share) + 4}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _class_table(rows: Sequence[tuple[str, int, int, int, str]]) -> str:
    body = "".join(
        f'<tr><td>{escape(name)}<td class="number">{count:,}<td><span class="meter"><i style="width:{hits / count:.1%}"></i>'
        f'</span> {hits / count:.0%}<td class="number">{hits5 / count:.0%}<td>{escape(taken)}\n'
        for name, count, hits, hits5, taken in rows
    )
    return (
        '<div class="card"><h3>Each class</h3><input type="search" placeholder="Find a class" aria-label="Find a class">'
        '<div class="classes"><table><thead><tr><th>class<th class="number">pictures<th>top-1<th class="number">top-5'
        f"<th>most often taken for</thead><tbody>\n{body}</tbody></table></div></div>\n"
    )


def _name(run: Run, index: int) -> str:
    labels = run.models[0].network.labels
    return labels.names[index] if labels else f"class {index}"


def _thumbnail(run: Run, place: int) -> str:
    """A picture as a small square, inside the page; a mark where it has vanished since."""
    sample = run.dataset.samples[place]
    try:
        image = ImageOps.fit(sample.image(), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    except ImageError:
        return f'<img alt="{escape(sample.name)}">'
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(sample.name)}" title="{escape(sample.name)}" src="data:image/jpeg;base64,{data}">'
