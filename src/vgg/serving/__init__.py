"""A model server: images and tensors in, predictions out, over HTTP and gRPC, with a web page to try it.

docs/serving.md shows how to run it, docs/server-behaviour.md lists what it guarantees.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """The settings of a server, as `vgg serve` takes them."""

    models: tuple[str, ...] = ()  # each `PATH`, `NAME=PATH` or `NAME:VERSION=PATH`; none: the model in the package
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free port
    grpc_port: int | None = None  # None: no gRPC
    repository: Path | None = None  # folder whose models clients may load and unload
    api_key_file: Path | None = None  # one key per line
    allow_origins: tuple[str, ...] = ()  # origins whose web pages may call the server
    batch_size: int = 8  # maximum number of images per batch
    queue: int = 64  # maximum number of images that wait for one model
    deadline: float = 30  # seconds from a request's first byte to its response
    drain: float = 30  # seconds after SIGTERM in which accepted requests may finish
    max_body: int = 32  # MiB per request body
    decode: int = 512  # MiB of memory for the images that are decoded at the same time
    engine: str = "auto"
    threads: int | None = None
    device: str = "cpu"
    precision: str = "auto"
    tls_cert: Path | None = None  # PEM file of the server's certificate; None: no TLS
    tls_key: Path | None = None  # PEM file of its private key
    traces: str | None = None  # address of an OpenTelemetry collector
