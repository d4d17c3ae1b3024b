"""The command line: one file a verb, each thin. Results go to stdout, everything else to stderr."""

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from ..errors import Error, Notice
from . import bench, classify, convert, evaluate, inspect, models, prepare, pull, sample, serve, train

app = typer.Typer(
    name="vgg",
    help="VGG networks: classify pictures with them, convert them, check them, train them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
app.command()(classify.classify)
app.command()(convert.convert)
app.command()(inspect.inspect)
app.command()(models.models)
app.command()(pull.pull)
app.add_typer(sample.app)
app.command()(evaluate.evaluate)
app.add_typer(prepare.app, name="prepare")
app.command()(bench.bench)
app.command()(serve.serve)
app.command()(train.train)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"vgg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: exit code 0, 1 for an error said in one line, 2 for wrong usage, 130 when interrupted."""
    warnings.showwarning = _show  # type: ignore[assignment]
    warnings.simplefilter("always", Notice)
    warnings.filterwarnings("ignore", module="PIL")  # what they warn of, our errors say
    try:
        app(prog_name="vgg")
    except Error as error:
        print(f"vgg: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _show(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"vgg: {'note' if issubclass(category, Notice) else 'warning'}: {message}", file=sys.stderr)
