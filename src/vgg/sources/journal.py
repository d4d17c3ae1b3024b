"""The file in a folder of prepared images that says what is in it, so that the next command continues."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from .. import json_output
from ..errors import Error
from ..files import open_file, reason, replacing
from ..progress import Progress
from ..store import refuse_other_work

NAME = ".prepare.json"  # in the prepared folder
HASHED = 2**22  # bytes read at once


class Journal:
    """The file in a prepared folder with its options, the splits in it, and the archives that have been verified.

    The splits may be prepared by different commands, each class is independent of the version of vgg, and its presence says
    that it is complete. So the key is the options alone, and there is no other state.
    """

    def __init__(self, folder: Path, options: dict[str, object], fresh: bool) -> None:
        self._folder, self._path, self._wanted, self._fresh = folder, folder / NAME, options, fresh
        self._options, self._splits, self._verified = options, set[str](), dict[str, list[int]]()
        if not self._path.exists():
            return
        self._splits = {"train", "val"}  # of a journal without them
        try:
            journal = json.loads(self._path.read_text())
            self._options, self._verified = dict(journal["options"]), dict(journal["verified"])
            self._splits &= set(journal.get("splits", self._splits))
        except (ValueError, KeyError, TypeError):
            pass
        if not fresh:
            refuse_other_work(folder, options, self._options)

    def begin(self, splits: Iterable[str]) -> None:
        """Add splits to the folder. Raises Error if it has other files in their place."""
        for split in splits:
            folder = self._folder / split
            if split not in self._splits and folder.exists() and any(folder.iterdir()):
                raise Error(f"{folder}: has files that `vgg prepare` did not make; choose another output folder")
        if self._fresh:
            gone = self._splits if self._options != self._wanted else self._splits.intersection(splits)
            for folder in (self._folder / split for split in gone):
                if folder.exists():
                    shutil.rmtree(folder)
            self._splits = self._splits - gone
        self._options, self._splits = self._wanted, self._splits.union(splits)
        self._write()

    def verify(self, archive: Path, sha1: str, progress: Progress) -> None:
        """Raise Error unless the archive has this SHA1. It is hashed once, and again if its size or time has changed."""
        try:
            status = archive.stat()
            known = [status.st_size, status.st_mtime_ns]
            if self._verified.get(str(archive.resolve())) == known:
                return
            total = hashlib.sha1(usedforsecurity=False)
            with open_file(archive) as file:
                while piece := file.read(HASHED):
                    total.update(piece)
                    progress(f"Verifying {archive.name}", file.tell(), status.st_size, "bytes")
        except OSError as error:
            raise Error(f"{archive}: {reason(error)}") from None
        if total.hexdigest() != sha1:
            raise Error(
                f"{archive}: is damaged, or not the published archive: its SHA1 is {total.hexdigest()}, published is {sha1}; "
                f"download it again, or use --no-verify for another archive of the same layout"
            )
        self._verified[str(archive.resolve())] = known
        self._write()

    def _write(self) -> None:
        with replacing(self._path) as file:
            journal = {"options": self._options, "splits": sorted(self._splits), "verified": self._verified}
            file.write(json_output.dumps(journal).encode())
