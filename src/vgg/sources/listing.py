"""Lists of the images at a place, made lazily and in a fixed order.

A place is an image, a folder, which is walked, a glob, a list file (.txt), a WebDataset shard (.tar), a file of CIFAR-10 or
CIFAR-100 (.bin), or a URL of one of these. Shards and files of CIFAR are containers: they are listed as one sample, which
`unpack` replaces by the images in it. So a list is short, and bulk work can open containers where it reads them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path

from ..errors import Error, ImageError
from ..image_formats import SUFFIXES, suffix_of
from ..labels import Labels, Resolve, resolver
from . import cifar, numbering, patterns, stores, tables
from .samples import UNLABELLED, Sample, Unreadable
from .walk import SHARD, Walk, sample

CIFAR, LIST = ".bin", ".txt"


def is_container(sample: Sample) -> bool:
    return sample.path.endswith((SHARD, CIFAR))


def is_image(place: str) -> bool:
    """Whether a place has the suffix of an image."""
    return suffix_of(place) in SUFFIXES


def is_collection(place: str) -> bool:
    """Whether a place has the suffix of a list file or a container."""
    return place.endswith((SHARD, CIFAR, LIST))


def is_folder(place: str) -> bool:
    """Whether a place is a folder. A URL with the suffix of a file is not: a web server would have to send the file."""
    return not (stores.is_url(place) and (is_image(place) or is_collection(place))) and stores.is_folder(place)


def images(place: str, base: str | None = None, *, check: bool = True) -> Iterator[Sample]:
    """The images and containers at a place, without classes.

    Args:
        place: as `stores.normalised` returns it.
        base: a folder that names are relative to; by default they are paths or URLs.
        check: whether a missing file is an error at once; otherwise, it is listed, and reading it fails.

    Raises:
        ImageError: the file does not exist, or nothing matches.
        Error: a folder or store can't be listed.
    """
    if is_folder(place):
        walk = Walk(place)
        yield from walk.images(place, base)
        walk.report()
    elif has_magic(place) and not stores.exists(place):
        yield from _matched(place, base)
    elif check and not stores.exists(place):
        raise ImageError(f"{place}: file or folder not found")
    else:
        yield from _file(place, base)


def labelled(
    place: str, classes: int, labels: Labels | None, base: str | None = None, *, several: bool = False
) -> Iterator[Sample]:
    """The images of class folders or a list file, with their classes; or containers, which hold the classes.

    Args:
        place: as `stores.normalised` returns it.
        classes: as for `vgg.sources.open`.
        labels: as for `vgg.sources.open`.
        base: as for `images`.
        several: as for `vgg.sources.open`.

    Raises:
        Error: there is nothing, or a class is unknown; see `vgg.sources.open`.
    """
    containers, folders = parts(place)
    for kind in [cifar.kind_of(one.path) for one in containers if one.path.endswith(CIFAR)]:
        if classes != kind.classes:
            raise Error(f"{place}: is {kind.name}, which has {kind.classes} classes; the model has {classes}")
    yield from (sample(one.path, base, size=one.size) for one in containers)
    if folders:
        walk = Walk(place)
        for name, target in numbering.targets(place, list(folders), classes, labels).items():
            yield from (one for one in walk.images(folders[name], base, target) if not is_container(one))
        walk.report()
    elif not containers:
        yield from list_file(place, resolver(classes, labels), base, several=several)


def parts(place: str) -> tuple[list[Sample], dict[str, str]]:
    """The containers at a place, or if there are none the class folders by name; neither if it is a list file.

    A folder of CIFAR-10 or CIFAR-100 means its training files.
    """
    if not is_folder(place):
        return [sample(place)] if place.endswith((SHARD, CIFAR)) else [], {}
    found = stores.entries(place)
    kind = cifar.kind_in(one.name for one in found)
    batches = [one for one in found if kind and fnmatch(one.name, kind.train)]
    containers = batches or [one for one in found if one.name.endswith(SHARD) and not one.is_folder]
    walk = Walk(place)
    folders = {one.name: one.place for one in found if one.is_folder and not walk.is_repeated(one)}
    if not containers and not folders:
        raise Error(f"{place}: has no class folders in it, nor .tar shards")
    return [sample(one.place, size=one.size) for one in containers], {} if containers else folders


def unpack(samples: Iterable[Sample], resolve: Resolve | None = None, *, keep_unreadable: bool = False) -> Iterator[Sample]:
    """The samples, with the images in a container instead of it. A container at a URL is copied to a temporary file.

    Args:
        samples: as listed.
        resolve: the index of a class in a shard; without it, classes are ignored.
        keep_unreadable: whether a container that can't be read is a sample that raises ImageError when it is read, rather than
            an error at once.

    Raises:
        ImageError: a container is missing or damaged, or a class in it is missing or unknown.
        Error: a store keeps failing.
    """
    for one in samples:
        if not is_container(one):
            yield one
            continue
        from . import shards  # late, since other images don't need tarfile

        copy = stores.Copy(one.path) if stores.is_url(one.path) else None
        path = copy.path if copy else one.path
        try:
            found = (
                cifar.read(Path(path), cifar.kind_of(one.path)) if path.endswith(CIFAR) else shards.read(Path(path), resolve)
            )
        except Error as error:
            message = str(error).replace(path, one.path)
            if not keep_unreadable:
                raise ImageError(message) from None
            yield Unreadable(one.name, UNLABELLED, one.path, error=message)
            continue
        for each in found:
            yield replace(each, name=f"{one.name}/{each.name}", held=copy)


def list_file(path: str, resolve: Resolve | None, base: str | None = None, *, several: bool = False) -> Iterator[Sample]:
    """The images of a list file.

    A line is a path, relative to the file's folder, or a URL, then a tab, comma or space, and a class; or the file is a table
    (.csv, .tsv, .jsonl), see `tables`. Without `resolve`, a line may have no class. With `base`, names are as in the list.
    With `several`, an image may have any number of classes.
    """
    folder, seen = stores.parent(path), dict[str, str]()
    try:
        with stores.opened(path) as lines:
            read = tables.read(path, lines) if path.endswith(tables.TABLES) else _lines(lines, resolve is not None, several)
            for row in read:
                target, classes = UNLABELLED, None
                if resolve:
                    try:
                        classes = tables.resolved(row.classes, resolve, several)
                        if row.image in seen:
                            raise ValueError(f"{row.image} is already in the list, as {seen[row.image]}")
                    except ValueError as error:
                        raise ValueError(f"line {row.line}: {error}") from None
                    seen[row.image] = f"class {' and '.join(map(str, classes))}" if classes else "an image without a class"
                    target = classes[0] if len(classes) == 1 else UNLABELLED
                place = stores.portable(stores.join(folder, row.image))
                name = place if base is None else row.image
                yield Sample(name, target, place, several=classes if several else None, group=row.group)
    except UnicodeDecodeError:
        raise Error(f"{path}: a list of images must be UTF-8 text, with an image and its class on each line") from None
    except ValueError as error:
        raise Error(f"{path}, {error}") from None


def _lines(lines: Iterable[str], labelled: bool, several: bool) -> Iterator[tables.Row]:
    """The images of a list of lines. The classes follow the last separator, or the first one if there may be several."""
    for number, line in enumerate(map(str.strip, lines), 1):
        separator = next((one for one in "\t, " if one in line), None)
        name, classes = line, ""
        if separator and (labelled or not is_image(line)):
            name, _, classes = line.partition(separator) if several else line.rpartition(separator)
        if line:
            yield tables.Row(number, name.strip(), classes.strip())


def _file(place: str, base: str | None) -> Iterator[Sample]:
    return list_file(place, None, base) if place.endswith(LIST) else iter([sample(place, base)])


def _matched(pattern: str, base: str | None) -> Iterator[Sample]:
    """The images of a pattern. What is in a folder that matches is listed with it, and not again."""
    found = patterns.matches(pattern)
    if not found:
        raise ImageError(f"{pattern}: matches no file")
    walk, folders = Walk(pattern), set[str]()
    for match in found:
        if any(one in folders for one in stores.parents(match)):
            continue
        if is_folder(match):
            folders.add(match)
            yield from walk.images(match, base)
        elif not walk.is_broken(match):
            yield from _file(match, base)
    walk.report()
