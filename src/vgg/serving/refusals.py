"""Errors of requests, each with its HTTP status. Docstrings and examples appear in the OpenAPI description."""

from ..errors import Error
from . import limits


class Refusal(Error):
    """The request is invalid; the message says why."""

    status = 400
    example = "top must be an integer of 1 or more"

    def __init__(self, message: str, **headers: str) -> None:
        super().__init__(message if len(message) <= limits.MESSAGE else f"{message[: limits.MESSAGE]}…")
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Unauthorized(Refusal):
    """The server requires an API key, and the request has no valid one."""

    status = 401
    example = "an API key is required: send `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Forbidden(Refusal):
    """The operation is disabled, or a web page of another origin sent the request."""

    status = 403
    example = "web pages of this origin may not call this server; allow them with `vgg serve --allow-origin`"


class NotFound(Refusal):
    """The model or version does not exist."""

    status = 404
    example = "unknown model 'resnet'; choose from vgg16-gap"


class TooSlow(Refusal):
    """The body did not arrive before the deadline."""

    status = 408
    example = "the body did not arrive before the deadline"


class TooLarge(Refusal):
    """The body is too large, or contains more images than the queue can hold."""

    status = 413
    example = "the body is larger than 32 MiB"


class Unsupported(Refusal):
    """The content type or content encoding of the body is not supported."""

    status = 415
    example = "unsupported content type text/plain; send an image, multipart/form-data, or JSON with base64"


class Unreadable(Refusal):
    """None of the images can be read."""

    status = 422
    example = "cat.jpg: not an image, or an unsupported format"


class NotSupported(Refusal):
    """The model does not support this operation."""

    status = 501
    example = "model vgg16 has no heat maps: its file quantizes activations"


class Busy(Refusal):
    """The server is full, loads its models, or is shutting down; `Retry-After` says in how many seconds to try again."""

    status = 503
    example = "the queue is full; try again later"


class Late(Refusal):
    """The deadline passed before the response was ready; the work was cancelled."""

    status = 504
    example = "the deadline passed before the response was ready"
