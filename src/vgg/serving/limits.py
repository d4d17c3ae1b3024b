"""Limits that the server checks before it spends memory or time on a request. docs/server-behaviour.md lists them all."""

import sys

BODIES = 8  # number of bodies of the maximum size that fit into memory at the same time
JSON_VALUES = 10_000  # of a request, without the numbers of a tensor
JSON_HEAD = 2**16  # bytes of each field of an inference request other than `data`
MESSAGE_VALUES = 10_000  # of a gRPC message; text, bytes and packed floats are one
DIGITS = 1000  # of a number
NAME = 1000  # characters of an image's name
SIDE = 1024  # height and width of an input tensor; fully convolutional networks accept any size of at least 32
HEADERS, HEADER_BYTES = 100, 2**14  # number of a request's headers, and of their bytes
FORM_PARTS = 1000
PATH = 1000  # characters of a path in a log entry
MESSAGE = 1000  # characters of an error message
CONNECTIONS = 1000
DESCRIPTORS = 128  # that connections leave to the rest of the process
WATCHERS = 16  # calls of gRPC that wait for changes of the health
ACCEPTS = 16  # connections that are accepted before the event loop continues; each needs a descriptor
LOG_LINES = 1000  # per second: requests
LOG_WARNINGS = 10  # per second and logger: warnings and errors, which may have a traceback


def connections(protocols: int, descriptors: int = 1) -> int:
    """The number of connections that each of several protocols may have, from the process's limit of open files.

    Args:
        protocols: number of protocols.
        descriptors: that a connection needs.
    """
    if sys.platform == "win32":  # has no such limit
        return CONNECTIONS // protocols
    import resource

    available, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(CONNECTIONS, (available - DESCRIPTORS) // descriptors) // protocols)
