"""A model server: pictures and tensors in over HTTP and gRPC, predictions out, and a page to try it.

docs/server-behavior.md says what it promises, docs/serving.md how to run it.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What `vgg serve` was asked for."""

    models: tuple[str, ...] = ()  # each `PATH`, `NAME=PATH` or `NAME:VERSION=PATH`; none: the network in the package
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any that is free
    grpc_port: int | None = None  # None: no gRPC
    repository: Path | None = None  # the folder whose models may be loaded and unloaded while it serves
    api_key_file: Path | None = None  # a key a line
    allow_origins: tuple[str, ...] = ()  # web pages of other origins that may call it
    batch_size: int = 8  # pictures that a batch holds at most
    queue: int = 64  # pictures of one model that may wait for the engine
    deadline: float = 30  # seconds from a request's first byte to its answer
    drain: float = 30  # seconds that accepted requests have left after SIGTERM
    max_body: int = 32  # MiB of one request's body
    engine: str = "auto"
    threads: int | None = None
    device: str = "cpu"
