"""Model files on the Hugging Face Hub, named `hf://owner/name[@revision][/file]`.

huggingface_hub downloads them into its own cache, which other libraries share, with the login, the mirror (`HF_ENDPOINT`) and
the offline mode (`HF_HUB_OFFLINE`) of that package. Only `vgg.formats` reads the files, and its readers run no code.
"""

import re
from collections.abc import Collection
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..errors import Error, one_line
from ..extras import require
from ..progress import Progress, silent

# What a file may be, the best first: safetensors can't contain code, ONNX files contain preprocessing and labels.
SUFFIXES = (".safetensors", ".onnx", ".pth", ".pt", ".bin", ".keras", ".h5", ".params", ".caffemodel")
TIMEOUT = 10  # seconds for the list of a repository's files
USUAL = ("model", "pytorch_model")  # the names without suffix of a repository's main file
_ADDRESS = re.compile(r"hf:/+([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")  # a Path has one of the two slashes


def is_address(model: str | Path) -> bool:
    """Whether a model is named by an address of the Hub."""
    return re.match(r"hf:/", str(model)) is not None


def locate(address: str, progress: Progress = silent) -> Path:
    """The file at an address, downloaded unless the cache has it. Without a connection, the cached version is used.

    Args:
        address: `hf://owner/name`, the repository's model file: of the formats in SUFFIXES the first that it has, outside of
            folders if possible; or `hf://owner/name/file`. After `owner/name`, `@revision` is a branch, a tag or a commit, with
            `%2F` for a slash.
        progress: see `vgg.zoo.pull`.

    Returns:
        The path in huggingface_hub's cache, with the files that belong to it beside it: `config.json` and external data.

    Raises:
        Error: the address is invalid, has no model file or several, can't be downloaded, or huggingface_hub is missing.
    """
    parts = _ADDRESS.fullmatch(address)
    if not parts:
        raise Error(f"{address}: invalid address; use hf://owner/name, hf://owner/name@revision or hf://owner/name/file")
    repository, revision, file = parts[1], unquote(parts[2]) if parts[2] else None, parts[3] or ""
    address = address.replace("hf:/", "hf://", 1) if "://" not in address else address
    require("hf://", "hub", "huggingface_hub")
    import huggingface_hub as hub
    from huggingface_hub import errors

    wanted: list[str] = []
    try:
        files = [one.rfilename for one in hub.model_info(repository, revision=revision, timeout=TIMEOUT).siblings or ()]
        file = _chosen(address, file, files)
        bar = _bar(f"{repository}/{file}", progress)
        wanted = [file, *(other for other in files if _belongs(other, file))]
        first, *_ = [hub.hf_hub_download(repository, one, revision=revision, tqdm_class=bar) for one in wanted]
        return Path(first)
    except Error:
        raise
    except errors.GatedRepoError:
        raise Error(f"{address}: access is restricted; accept the terms on its page, and log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise Error(f"{address}: repository not found, or private; check its name, or log in with `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise Error(f"{address}: the repository has no revision {revision!r}") from None
    except errors.HFValidationError as error:
        raise Error(f"{address}: invalid name of a repository ({one_line(error)})") from None
    except Exception as error:  # those of the HTTP client, which is another one in each major version
        folder = _cached(repository, revision or "main")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] if folder else []
        if folder is None or not {*wanted, *filter(None, [file])} <= {*names}:
            status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
            why = f"the Hub responded {status}" if status else f"the Hub can't be reached ({one_line(error)})"
            raise Error(f"{address}: not downloaded yet, and {why}") from None
        return folder / _chosen(address, file, names)


def _chosen(address: str, file: str, files: Collection[str]) -> str:
    """The file that an address names among a repository's files."""
    has = f"the repository has {', '.join(sorted(files)[:9]) or 'no files'}{', …' * (len(files) > 9)}"
    if file:
        if file not in files:
            raise Error(f"{address}: file not found; {has}")
        return file
    ranked: dict[tuple[int, int], list[str]] = {}
    for one in map(PurePosixPath, sorted(files)):
        if one.suffix in SUFFIXES:
            ranked.setdefault((len(one.parts), SUFFIXES.index(one.suffix)), []).append(str(one))
    if not ranked:
        raise Error(f"{address}: no model file found; {has}")
    best = ranked[min(ranked)]
    usual = [one for one in best if PurePosixPath(one).stem in USUAL]
    if len(best) > 1 and len(usual) != 1:
        raise Error(f"{address}: several model files: {', '.join(best[:9])}; add one of them to the address, after a slash")
    return (usual or best)[0]


def _belongs(other: str, file: str) -> bool:
    """Whether a file is read with a model file: timm's description of it, or an ONNX file's external data."""
    config = str(PurePosixPath(file).with_name("config.json"))
    return other == config or (file.endswith(".onnx") and other.startswith((f"{file}.", f"{file}_")))


def _cached(repository: str, revision: str) -> Path | None:
    """The folder in the cache with the files of a revision that were downloaded; None if there are none."""
    import huggingface_hub as hub

    try:
        repositories = hub.scan_cache_dir().repos
    except hub.errors.CacheNotFound:
        return None
    for one in repositories:
        if one.repo_type == "model" and one.repo_id == repository:
            for found in one.revisions:
                if revision in (found.commit_hash, *found.refs):
                    return Path(found.snapshot_path)
    return None


def _bar(task: str, progress: Progress) -> Any:
    """A class of progress bars for huggingface_hub that report to `progress` instead of drawing."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            progress(task, int(self.n), self.total and int(self.total), "bytes")

    return Bar
