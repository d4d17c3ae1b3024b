"""vgg serve"""

from pathlib import Path
from typing import Annotated

import typer

from ..extras import require
from ..zoo import EMBEDDED
from . import common


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="[NAME[:VERSION]=]M",
            help=f"Model file or published name; may have a name and be repeated.  [default: {EMBEDDED}]",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all addresses.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on; 0: any free port.")
    ] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port", min=0, max=65535, metavar="N", help="Port for gRPC; requires vgg[grpc].  [default: no gRPC]"
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", exists=True, file_okay=False, metavar="DIR",
            help="Folder whose models clients may load and unload.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="File of accepted API keys, one per line.")
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert", metavar="FILE", help="Certificate chain in PEM format, for HTTPS and gRPC.  [default: no TLS]"
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Private key of --tls-cert in PEM format, not encrypted.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="ORIGIN", help="Origin whose web pages may call the server; may be repeated."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, metavar="N", help="Number of images per batch, at most.")
    ] = 8,
    queue: Annotated[
        int, typer.Option("--queue", min=1, metavar="N", help="Maximum number of images that wait for one model.")
    ] = 64,
    deadline_seconds: Annotated[
        float,
        typer.Option(
            "--deadline-seconds", min=0.001, metavar="S", help="Maximum time until a response begins, and again to send it."
        ),
    ] = 30,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", min=0, metavar="S", help="Time for accepted requests to finish after SIGTERM.")
    ] = 30,
    max_body_mib: Annotated[
        int, typer.Option("--max-body-mib", min=1, metavar="N", help="Maximum size of a request body, in MiB.")
    ] = 32,
    decode_mib: Annotated[
        int, typer.Option("--decode-mib", min=1, metavar="N", help="Memory for decoding images, in MiB.")
    ] = 512,
    traces: Annotated[
        str | None,
        typer.Option(
            "--traces", metavar="URL",
            help="OpenTelemetry collector, such as http://127.0.0.1:4318; requires vgg[telemetry].  [default: no traces]",
        ),
    ] = None,
    engine: common.EngineOption = "auto",
    threads: common.ThreadsOption = None,
    device: common.DeviceOption = "cpu",
    precision: common.PrecisionOption = "auto",
) -> None:  # fmt: skip
    """Serve models over HTTP, with a web page at /.

    Example: `vgg serve --model vgg16.onnx --port 8080`

    Supports images at /v1/classify, the Open Inference Protocol, TensorFlow Serving's and KServe's version 1 REST interface,
    and Multi Model Server's interface; see /docs.
    """
    require("serving", "serve", "msgspec", "starlette", "uvicorn", "prometheus_client", "python_multipart")
    if grpc_port is not None:
        require("gRPC", "grpc", "grpc", "tritonclient", "google")
    if traces:
        require("--traces", "telemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    if (tls_cert is None) != (tls_key is None):
        missing = "--tls-key" if tls_key is None else "--tls-cert"
        raise typer.BadParameter("TLS requires --tls-cert and --tls-key", param_hint=missing)
    from ..serving import Settings
    from ..serving.server import serve as run

    run(
        Settings(
            tuple(model or ()), host, port, grpc_port, repository, api_key_file, tuple(allow_origin or ()), batch_size, queue,
            deadline_seconds, drain_seconds, max_body_mib, decode_mib, engine, threads, device, precision, tls_cert,
            tls_key, traces,
        )
    )  # fmt: skip
