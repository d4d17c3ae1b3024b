"""Glob patterns: `*`, `?` and `[…]` in the name of a file or folder, and `**` for any number of folders.

What exists under a part of a pattern is meant by it, so the folder `shoot [2024]` needs no escapes.
"""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from glob import escape, has_magic
from pathlib import Path

from . import stores
from .ignored import is_ignored


def matches(pattern: str) -> list[str]:
    """The places that match a pattern, sorted. A folder that is reached by several links is searched once.

    Files and folders as in `ignored` only match a part that begins with their first character. Raises Error if a folder or
    store can't be listed.
    """
    if stores.is_url(pattern):
        return _at_url(pattern)
    first, *parts = Path(pattern).parts
    if not os.path.isabs(pattern):
        first, parts = ".", [first, *parts]
    return sorted({*_expanded(first, parts, set())})


def _expanded(folder: str, parts: Sequence[str], seen: set[object]) -> Iterator[str]:
    """The places in a folder that match the parts of a pattern."""
    if not parts or parts == ["**"]:
        yield folder
        return
    state = stores.identity(folder), len(parts)
    if state in seen or not os.path.isdir(folder):
        return
    seen.add(state)
    part, *rest = parts
    if part == "**":
        yield from _expanded(folder, rest, seen)
    elif os.path.lexists(literal := stores.join(folder, part)):
        yield from _expanded(literal, rest, seen)
        return
    elif not has_magic(part):
        return
    # Links come last, so that an image has the name without them.
    for one in sorted(stores.entries(folder, ignored=_names_first(part)), key=lambda one: one.is_link):
        if part == "**" and one.is_folder:
            yield from _expanded(one.place, parts, seen)
        elif part != "**" and fnmatch(one.name, part):
            yield from _expanded(one.place, rest, seen)


def _at_url(pattern: str) -> list[str]:
    scheme, separator, path = pattern.partition("://")
    parts, start = path.split("/"), 1  # the first one is the host or bucket
    while start < len(parts) and (
        not has_magic(parts[start]) or stores.exists(scheme + separator + "/".join(parts[: start + 1]))
    ):
        start += 1
    with stores.reported(pattern):
        system, escaped = stores.filesystem(scheme + separator + "/".join([*map(escape, parts[:start]), *parts[start:]]))
        found = [system.unstrip_protocol(name) for name in sorted(system.glob(escaped))]
    depth = pattern.count("/", 0, len(scheme) + 3) + start
    return [one for one in found if all(_is_meant(name, parts[start:]) for name in one.split("/")[depth:])]


def _is_meant(name: str, parts: Sequence[str]) -> bool:
    return not is_ignored(name) or any(_names_first(part) and fnmatch(name, part) for part in parts)


def _names_first(part: str) -> bool:
    """Whether a part of a pattern begins with a character of the name."""
    return not part.startswith(("*", "?", "["))
