"""vgg serve"""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import Error
from ..zoo import EMBEDDED
from .common import DeviceOption, EngineOption, ThreadsOption


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="[NAME[:VERSION]=]M",
            help=f"A model file, and what it is called; may be repeated, the first is the default.  [default: {EMBEDDED}]",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0: anywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes any that is free.")] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option("--grpc-port", min=0, max=65535, metavar="N", help="Also serve gRPC there; needs vgg[grpc]."),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", exists=True, file_okay=False, metavar="DIR",
            help="Let clients load and unload the models in this folder.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="Ask for one of the keys in this file, one a line.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="ORIGIN", help="Let web pages of this origin call; may be repeated."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, metavar="N", help="Pictures a batch at most.")] = 8,
    queue: Annotated[int, typer.Option("--queue", min=1, metavar="N", help="Pictures that may wait for a model.")] = 64,
    deadline_seconds: Annotated[
        float, typer.Option("--deadline-seconds", min=0.001, metavar="S", help="How long a request may take.")
    ] = 30,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", min=0, metavar="S", help="How long accepted requests have after SIGTERM.")
    ] = 30,
    max_body_mib: Annotated[
        int, typer.Option("--max-body-mib", min=1, metavar="N", help="How large a request's body may be.")
    ] = 32,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:  # fmt: skip
    """Serve models over HTTP, with a page to try them at /.

    Example: `vgg serve --model vgg16.onnx --port 8080`

    Speaks the Open Inference Protocol, Multi Model Server's ways, and plain pictures at /v1/classify; /docs shows how.
    """
    try:
        from ..serving import Settings
        from ..serving.server import serve as run

        if grpc_port is not None:
            from ..serving import grpc  # noqa: F401
    except ModuleNotFoundError as missing:
        extra = "serve" if grpc_port is None else "grpc"
        raise Error(f"{missing.name} is not installed; `pip install 'vgg[{extra}]'` brings it") from None
    run(
        Settings(
            tuple(model or ()), host, port, grpc_port, repository, api_key_file, tuple(allow_origin or ()), batch_size, queue,
            deadline_seconds, drain_seconds, max_body_mib, engine, threads, device,
        )
    )  # fmt: skip
