"""Which requests the server accepts: API keys, origins, limits on bodies, and the shutdown."""

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from ..errors import Error
from ..files import reason
from . import Settings, limits
from .memory import Memory, Reservation
from .refusals import Busy, Forbidden, TooLarge, Unauthorized

# Health checks and the web page need no key, and work while models load and during a shutdown.
OPEN = ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json")
SAFE = ("GET", "HEAD", "OPTIONS")


class Admission:
    """The rules for accepting requests, and the state that they depend on."""

    def __init__(self, settings: Settings) -> None:
        self.loaded = False  # the models are loaded
        self.draining = False  # the server is shutting down
        self.active = 0  # requests that were accepted and have no complete response yet
        self._origins = set(settings.allow_origins)
        self._keys = _read_keys(settings.api_key_file) if settings.api_key_file else None
        self._max_body = settings.max_body * 2**20
        self.deadline = settings.deadline  # seconds: for a body to arrive, for the response, and for sending it
        self._memory = Memory(limits.BODIES * self._max_body)

    @property
    def ready(self) -> bool:
        """Whether the server accepts requests."""
        return self.loaded and not self.draining

    def check_ready(self) -> None:
        """Raise Busy unless the server accepts requests."""
        if self.draining:
            raise shutting_down()
        if not self.loaded:
            raise Busy("the server is loading its models; try again later", retry_after="1")

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise a Refusal if a request must not be accepted, from its path and headers."""
        path = scope["path"]
        # A browser hides responses from pages of other origins, but it sends their requests all the same.
        if scope["method"] not in SAFE and _is_foreign(headers) and not {"*", headers.get("origin")} & self._origins:
            raise Forbidden(Forbidden.example)
        if is_open(path):
            return
        self.check_key(headers)
        if requires_readiness(path):
            self.check_ready()
        length = headers.get("content-length", "")
        if length.isdigit():
            self.check_size(int(length))

    def check_key(self, headers: Headers) -> None:
        """Raise Unauthorized if the server requires an API key and the headers contain no valid one."""
        if self._keys is None:
            return
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (credentials.strip() if scheme.lower() == "bearer" else "")
        digest = hashlib.sha256(given.encode()).digest()
        # Compare with every key, each in constant time: the time must not depend on the keys.
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise Unauthorized(Unauthorized.example, www_authenticate="Bearer")

    def reservation(self) -> Reservation:
        """Memory for a request."""
        return Reservation(self._memory)

    def check_size(self, size: int) -> None:
        """Raise TooLarge if a body is larger than allowed."""
        if size > self._max_body:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_body >> 20} MiB", connection="close")


def is_open(path: str) -> bool:
    """Whether a path needs no API key."""
    return path in OPEN or path.startswith("/page/")


def requires_readiness(path: str) -> bool:
    """Whether a path refuses requests while models load and during a shutdown."""
    return not is_open(path) and path != "/metrics"


def has_deadline(path: str) -> bool:
    """Whether the deadline applies after the body has arrived. Loading a model may take longer."""
    return not path.startswith("/v2/repository/models/")


def shutting_down() -> Busy:
    """The refusal of new requests during a shutdown."""
    return Busy("the server is shutting down", retry_after="5", connection="close")


def _is_foreign(headers: Headers) -> bool:
    """Whether a web page of another origin sent a request. Over plain HTTP, browsers send `Origin` only."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None and origin is not None:
        return origin.partition("://")[2] != headers.get("host")
    return site in ("cross-site", "same-site")


def _read_keys(path: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise Error(f"{path}: not a text file; API keys must be text, one per line") from None
    if not lines:
        raise Error(f"{path}: no API keys; write one per line")
    if number := next((number for number, line in enumerate(lines, 1) if len(line.split()) > 1), None):
        raise Error(f"{path}: API key {number} has spaces; write one key per line, without comments")
    return [hashlib.sha256(line.encode()).digest() for line in lines]
