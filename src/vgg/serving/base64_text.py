"""Base64 as programs write it: in lines, in the URL-safe alphabet, without padding, or in a data URL."""

import binascii
import re

from .refusals import Refusal

WHITESPACE = b" \t\r\n\f\v"
URL_SAFE = bytes.maketrans(b"-_", b"+/")
DATA_URL = re.compile(rb"data:[^,]{0,1000}?(;base64)?,", re.IGNORECASE)
TEXT = re.compile(rb"data:image/|(?!P[1-7]\s)[A-Za-z0-9+/_\-\s]{16,}")  # what begins like base64; not a text format of Netpbm
BEGINNING = 1024  # bytes


def decode(text: str, name: str) -> bytes:
    """The bytes that base64 text encodes.

    Args:
        text: base64 in the standard or the URL-safe alphabet, with any white space, with or without padding, or a data URL.
        name: of the image, for errors.

    Raises:
        Refusal: the text is not base64.
    """
    try:
        return _decode(text.encode("ascii"))
    except ValueError:  # which binascii.Error is
        pass
    if text.startswith(("b'", 'b"')):
        raise Refusal(f"{name}: Python's repr of bytes is not base64; send `base64.b64encode(data).decode()`")
    raise Refusal(f"{name}: invalid base64; the server does not download images from URLs")


def image_bytes(data: bytes) -> bytes:
    """Encoded images as they are, and those that a client has also encoded as base64 decoded."""
    if TEXT.fullmatch(data[:BEGINNING].rstrip(b"=")) or DATA_URL.match(data):
        try:
            return _decode(data)
        except ValueError:
            pass
    return data


def _decode(data: bytes) -> bytes:
    if found := DATA_URL.match(data):
        if not found[1]:
            raise ValueError("not base64")
        data = data[found.end() :]
    data = data.translate(URL_SAFE, WHITESPACE)
    if missing := -len(data) % 4:
        data += b"=" * missing
    return binascii.a2b_base64(data, strict_mode=True)
