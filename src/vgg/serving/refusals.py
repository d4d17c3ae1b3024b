"""Why a request is not answered: each reason with its HTTP status and one line for the caller."""

from ..errors import Error


class Refusal(Error):
    """A request that can't be answered, through the caller's fault or for lack of room or time."""

    status = 400

    def __init__(self, line: str, **headers: str) -> None:
        super().__init__(line)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Unauthorized(Refusal):
    """There are API keys, and the request has none of them."""

    status = 401


class Forbidden(Refusal):
    """It is switched off."""

    status = 403


class NotFound(Refusal):
    """There is no such model or version."""

    status = 404


class TooSlow(Refusal):
    """The body did not arrive in time."""

    status = 408


class TooLarge(Refusal):
    """The body is larger than what is read, or holds more pictures than the queue."""

    status = 413


class Unsupported(Refusal):
    """The body is of a kind or an encoding that is not read."""

    status = 415


class Unreadable(Refusal):
    """Pictures that are none."""

    status = 422


class NotSupported(Refusal):
    """The model can't do it."""

    status = 501


class Busy(Refusal):
    """There is no room now; `retry-after` says in how many seconds there may be."""

    status = 503


class Late(Refusal):
    """There was no answer before the deadline."""

    status = 504
