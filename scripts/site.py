"""MkDocs hooks: pages of the API reference, and files of the repository outside docs/ that pages link to."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")
# Python-Markdown wants an empty line before a list, and four spaces before what belongs to an item of a list.
LIST = re.compile(r"^(?![-*] |[|\s]|\d+\. )(.+)\n(?=(?:[-*]|\d+\.) )", re.MULTILINE)
NESTED = re.compile(r"^ {2,3}(?=\S)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add to the site what the navigation or a page names and docs/ does not have."""
    named = [path for section in config.nav or () for pages in section.values() if isinstance(pages, list)
             for page in pages for path in page.values()]  # fmt: skip
    for path in named:
        if path.startswith("api/"):
            module = "vgg" if path == "api/vgg.md" else f"vgg.{Path(path).stem}"
            files.append(File.generated(config, path, content=f"# {module}\n\n::: {module}\n"))
    waiting = [path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")]
    waiting += [Path(path).relative_to("repository") for path in named if path.startswith("repository/")]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if not path.is_relative_to("docs"):
            files.append(File.generated(config, _on_site(path).as_posix(), abs_src_path=str(ROOT / path)))
        if path.suffix == ".md":
            waiting += map(_resolved(path), LINK.findall((ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between files of the repository become links between files of the site, and lists those of Python-Markdown."""
    place = Path(page.file.src_uri)
    if place.parts[0] in ("api", "repository"):
        page.meta["search"] = {"boost": 0.3}  # the guides come first
    source = place.relative_to("repository") if place.is_relative_to("repository") else "docs" / place

    def rewritten(match: re.Match[str]) -> str:
        return Path(os.path.relpath(_on_site(_resolved(source)(match[1])), place.parent)).as_posix()

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)  # every second one is code
    parts[::2] = [NESTED.sub("    ", LIST.sub(r"\1\n\n", LINK.sub(rewritten, part))) for part in parts[::2]]
    return "".join(parts)


def _resolved(page: Path) -> Any:
    return lambda target: Path(os.path.normpath(page.parent / target))


def _on_site(path: Path) -> Path:
    return path.relative_to("docs") if path.is_relative_to("docs") else "repository" / path
