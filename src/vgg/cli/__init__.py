"""The command line: one module per verb. Results go to stdout, everything else to stderr."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import Error, Notice, printable
from ..files import reason
from . import streams

VERBS = (
    "classify", "convert", "inspect", "models", "pull", "sample", "evaluate", "prepare", "quantize", "features", "explain",
    "compare", "bench", "serve", "train",
)  # fmt: skip


class _Commands(Mapping[str, Any]):
    """The verbs' commands by name, created on access: creating all of them takes longer than classifying an image."""

    def __getitem__(self, name: str) -> Any:
        if name not in VERBS:
            raise KeyError(name)
        verb, alone = import_module(f".{name}", __name__), typer.Typer(rich_markup_mode="markdown")
        if hasattr(verb, "app"):
            alone.add_typer(verb.app, name=name)
        else:
            alone.command(name)(getattr(verb, name))
        return typer.main.get_group(alone).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Verbs(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]


app = typer.Typer(
    name="vgg",
    cls=_Verbs,
    help="VGG networks: classify images, convert, evaluate, quantize, explain, compare, serve and train.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"vgg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0; 1 for an error, printed in one line; 2 for wrong usage; 130 if interrupted."""
    warnings.showwarning = _show  # type: ignore[assignment]
    warnings.simplefilter("always", Notice)
    warnings.filterwarnings("ignore", module="PIL")  # our own errors say the same
    with streams.installed():
        try:
            try:
                app(prog_name="vgg")
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has closed it, as `head` does
            _fail("")
        except Error as error:
            _fail(str(error))
        except UnicodeEncodeError as error:
            _fail(f"{printable(error.object)}: the name is not UTF-8; rename it")
        except MemoryError as error:
            _fail(printable(str(error)) or "not enough memory")
        except OSError as error:
            _fail(printable(f"{error.filename}: {reason(error)}" if error.filename is not None else reason(error)))


def _fail(message: str) -> NoReturn:
    if message:
        print(f"vgg: {message}", file=sys.stderr)
    streams.discard_output()
    sys.exit(1)


def _show(message: Warning | str, category: type[Warning], *_: Any) -> None:
    kind = "note" if issubclass(category, Notice) else "warning"
    print(f"vgg: {kind}: {printable(str(message))}", file=sys.stderr)
