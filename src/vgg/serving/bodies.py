"""Request bodies with images: raw, as a form, or as base64 in JSON."""

import base64
import binascii
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..errors import ImageError
from .refusals import Refusal, TooLarge, Unsupported

# Content types of raw images besides image/*: `curl --data-binary` sends urlencoded, clients of SageMaker x-image.
RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded", "application/x-image")
MAX_FIELDS = 1000  # of a form
MAX_PIXELS = 50_000_000  # per image: less than the library allows, since a server decodes several untrusted images at once


@dataclass(frozen=True)
class EncodedImage:
    """An image file as a client sent it."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Body:
    """The images of a body, and the options sent with them."""

    images: list[EncodedImage]
    options: Mapping[str, Any] = field(default_factory=dict)


class _MemoryParser(MultiPartParser):
    """Keeps the files of a form in memory: the size of a body is limited, and there may be no writable disk."""

    spool_max_size = 2**40


async def read_images(request: Request) -> Body:
    """The images of a request: a raw body, a form with files, or JSON with base64.

    JSON is `{"image": …}` or `{"images": […]}`; an image is base64 text or `{"name": …, "data": base64}`.

    Raises:
        Refusal: the body has another format or contains no image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = await _read_form(request)
    elif kind == "application/json":
        body = _read_json(await decoded_body(request))
    elif kind in RAW or kind.startswith("image/"):
        data = await decoded_body(request)
        body = Body([EncodedImage("image", data)] if data else [])
    else:
        raise Unsupported(f"unsupported content type {kind}; send an image, multipart/form-data, or JSON with base64")
    if not body.images:
        raise Refusal("the request contains no image")
    return body


async def decoded_body(request: Request) -> bytes:
    """The body, decompressed if it is compressed.

    Raises:
        Unsupported: the content encoding is neither gzip nor deflate.
        TooLarge: the body exceeds the limit once it is decompressed.
        Refusal: the compressed data is damaged.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Refusal("the body is incomplete") from None
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise Unsupported(f"unsupported content encoding {encoding}; use gzip or deflate")
    limit = request.app.settings.max_body * 2**20
    decompressor = zlib.decompressobj(wbits=47)  # detects the headers of zlib and gzip
    try:
        plain = decompressor.decompress(body, limit)
    except zlib.error as error:
        raise Refusal(f"the body is not valid {encoding}: {error}") from None
    if decompressor.unconsumed_tail:
        raise TooLarge(f"the body is larger than {limit >> 20} MiB once it is decompressed")
    if not decompressor.eof:
        raise Refusal(f"the body is not valid {encoding}: it is truncated")
    return plain


async def _read_form(request: Request) -> Body:
    try:
        parser = _MemoryParser(request.headers, request.stream(), max_files=MAX_FIELDS, max_fields=MAX_FIELDS)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise Refusal(f"invalid form: {getattr(error, 'message', 'the content type has no boundary')}") from None
    except ClientDisconnect:
        raise Refusal("the body is incomplete") from None
    images, options = [], {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            images.append(EncodedImage(value.filename or key, await value.read()))
        else:
            options[key] = value
    return Body(images, options)


def _read_json(body: bytes) -> Body:
    record = parse_object(body)
    entries = record.pop("images", None)
    if entries is None:
        entries = [record.pop("image")] if "image" in record else []
    if not isinstance(entries, list):
        raise Refusal("`images` must be a list")
    images = []
    for index, entry in enumerate(entries):
        name = f"image {index}" if len(entries) > 1 else "image"
        if isinstance(entry, dict):
            if unknown := set(entry) - {"name", "data"}:
                raise Refusal(f"unknown field {', '.join(sorted(unknown))} of an image; choose from name, data")
            name, entry = entry.get("name", name), entry.get("data")
        if not isinstance(entry, str) or not isinstance(name, str):
            raise Refusal("an image must be base64 text, or an object with `name` and `data`")
        if entry.startswith("data:"):
            entry = entry.partition(",")[2]
        try:
            images.append(EncodedImage(name, base64.b64decode(entry, validate=True)))
        except (binascii.Error, ValueError):
            raise Refusal(f"{name}: invalid base64; the server does not download images from URLs") from None
    return Body(images, record)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refusal: the body is not JSON, not an object, or contains NaN or Infinity.
    """

    def refuse_constant(text: str) -> Any:
        raise ValueError(f"invalid number {text}")

    try:
        record = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not valid JSON: {error or 'nested too deeply'}") from None
    if not isinstance(record, dict):
        raise Refusal("the body must be a JSON object")
    return record


def check_size(image: EncodedImage) -> None:
    """Raise ImageError if the header of an image declares too many pixels."""
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            width, height = opened.size
    except Exception:  # the decoder will report what is wrong
        return
    if width * height > MAX_PIXELS:
        raise ImageError(f"{image.name}: {width * height:,} pixels; the maximum is {MAX_PIXELS:,}")
