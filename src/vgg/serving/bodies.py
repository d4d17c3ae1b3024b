"""What a request's body holds: pictures in any of the ways that people send them."""

import base64
import binascii
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..errors import ImageError
from .refusals import Refusal, TooLarge, Unsupported

# A picture itself, besides image/...: curl --data-binary calls everything a urlencoded form, SageMaker's clients say x-image.
RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded", "application/x-image")
MAX_FIELDS = 1000  # of a form
MAX_PIXELS = 50_000_000  # of a picture: less than the library reads, since a server decodes for strangers, several at once


@dataclass(frozen=True)
class Picture:
    """A picture as it was sent."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Body:
    """Pictures, and the options that came with them."""

    pictures: list[Picture]
    options: Mapping[str, Any] = field(default_factory=dict)


class _InMemory(MultiPartParser):
    """A form's files stay in memory, whose size is bounded already; there may be no disk to write to."""

    spool_max_size = 2**40


async def read_pictures(request: Request) -> Body:
    """The pictures of a request: a raw body, a form with files, or JSON with base64.

    JSON is `{"image": …}` or `{"images": […]}`, where a picture is base64 or `{"name": …, "data": base64}`.

    Raises:
        Refusal: the body is none of these, or holds no picture.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = await _form(request)
    elif kind == "application/json":
        body = _json(await decoded_body(request))
    elif kind in RAW or kind.startswith("image/"):
        data = await decoded_body(request)
        body = Body([Picture("image", data)] if data else [])
    else:
        raise Unsupported(
            f"a body of type {kind} is not read; send the picture itself, multipart/form-data, or JSON with base64"
        )
    if not body.pictures:
        raise Refusal("the request holds no picture")
    return body


async def decoded_body(request: Request) -> bytes:
    """The body, decompressed where it says that it is compressed; it may not grow beyond the limit of a body.

    Raises:
        Unsupported: it is compressed by something else than gzip or deflate. TooLarge. Refusal: it is damaged.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Refusal("the body ended early") from None
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise Unsupported(f"the content encoding {encoding} is not read; there are gzip and deflate")
    limit = request.app.settings.max_body * 2**20
    decompressor = zlib.decompressobj(wbits=47)  # zlib's or gzip's own heading
    try:
        plain = decompressor.decompress(body, limit)
    except zlib.error as error:
        raise Refusal(f"the body is not {encoding}: {error}") from None
    if decompressor.unconsumed_tail:
        raise TooLarge(f"the body is larger than {limit >> 20} MiB once it is decompressed")
    if not decompressor.eof:
        raise Refusal(f"the body's {encoding} ends early")
    return plain


async def _form(request: Request) -> Body:
    try:
        parser = _InMemory(request.headers, request.stream(), max_files=MAX_FIELDS, max_fields=MAX_FIELDS)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise Refusal(f"the form can't be read: {getattr(error, 'message', 'it has no boundary')}") from None
    except ClientDisconnect:
        raise Refusal("the body ended early") from None
    pictures, options = [], {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            pictures.append(Picture(value.filename or key, await value.read()))
        else:
            options[key] = value
    return Body(pictures, options)


def _json(body: bytes) -> Body:
    record = parse_object(body)
    entries = record.pop("images", None)
    if entries is None:
        entries = [record.pop("image")] if "image" in record else []
    if not isinstance(entries, list):
        raise Refusal("`images` must be a list")
    pictures = []
    for index, entry in enumerate(entries):
        name = f"image {index}" if len(entries) > 1 else "image"
        if isinstance(entry, dict):
            if unknown := set(entry) - {"name", "data"}:
                raise Refusal(f"a picture has `name` and `data`, not {', '.join(sorted(unknown))}")
            name, entry = entry.get("name", name), entry.get("data")
        if not isinstance(entry, str) or not isinstance(name, str):
            raise Refusal("a picture must be base64 text, or an object with `name` and `data`")
        if entry.startswith("data:"):
            entry = entry.partition(",")[2]
        try:
            pictures.append(Picture(name, base64.b64decode(entry, validate=True)))
        except (binascii.Error, ValueError):
            raise Refusal(f"{name}: is not base64; pictures are not fetched from addresses") from None
    return Body(pictures, record)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refusal when it is none, or has numbers that JSON has not."""

    def no_number(text: str) -> Any:
        raise ValueError(f"{text} is no number")

    try:
        found = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error or 'too deep'}") from None
    if not isinstance(found, dict):
        raise Refusal("the body must be a JSON object")
    return found


def check_size(picture: Picture) -> None:
    """Raises ImageError when a picture says in its first bytes that it has more pixels than are decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            width, height = image.size
    except Exception:  # what is wrong with it, the decoder will say
        return
    if width * height > MAX_PIXELS:
        raise ImageError(f"{picture.name}: has {width * height:,} pixels; at most {MAX_PIXELS:,} are taken")
