"""Request bodies with images: raw, as a form, or as base64 in JSON."""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from . import base64_text, limits
from .json_text import parse_object
from .memory import Reservation
from .refusals import Refusal, TooLarge, Unsupported

# Content types of raw images besides image/*: `curl --data-binary` sends urlencoded, clients of SageMaker x-image.
FORM = "application/x-www-form-urlencoded"
RAW = ("", "application/octet-stream", "binary/octet-stream", FORM, "application/x-image")
FIELDS = ("image", "images", "file", "data")  # of a form, whose text may be an image in base64
FORM_TEXT = re.compile(rb"[\w.\[\]-]{1,100}=[\x21-\x7e]*")
BEGINNING = 200  # bytes
STEP = 2**16  # bytes that are decompressed before the event loop continues


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
    elif kind in RAW or kind.startswith("image/") or kind.endswith("json"):
        content = await decoded_body(request)
        if kind.endswith("json") or content[:64].lstrip()[:1] == b"{":
            body = await request.app.in_thread(lambda: _read_json(content, request.scope["memory"]))
        else:
            body = _read_raw(bytes(content), kind)
    else:
        raise Unsupported(f"unsupported content type {kind}; send an image, multipart/form-data, or JSON with base64")
    if not body.images:
        raise Refusal("the request contains no image")
    return body


async def decoded_body(request: Request) -> bytearray:
    """The body, decompressed if it is compressed. It grows in place: many parts would leave holes in the process's memory.

    Raises:
        Unsupported: the content encoding is neither gzip nor deflate.
        TooLarge: the body exceeds the limit once it is decompressed.
        Busy: the bodies of all requests exceed the memory for them.
        Refusal: the compressed data is damaged.
    """
    body = bytearray()
    async for chunk in _decoded(request):
        body += chunk
    return body


async def _decoded(request: Request) -> AsyncGenerator[bytes]:
    """The parts of the body, decompressed if it is compressed. Raises as `decoded_body`."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise Unsupported(f"unsupported content encoding {encoding}; use gzip or deflate")
    try:
        async for chunk in request.stream() if encoding == "identity" else _decompressed(request, encoding):
            yield chunk
    except ClientDisconnect:
        raise Refusal("the body is incomplete") from None


async def _decompressed(request: Request, encoding: str) -> AsyncGenerator[bytes]:
    limit, size = request.app.settings.max_body * 2**20, 0
    decompressor = zlib.decompressobj(wbits=47)  # detects the headers of zlib and gzip
    async for chunk in request.stream():
        while chunk and not decompressor.eof:
            try:
                part = decompressor.decompress(chunk, STEP)
            except zlib.error as error:
                raise Refusal(f"the body is not valid {encoding}: {error}") from None
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body is larger than {limit >> 20} MiB once it is decompressed", connection="close")
            request.scope["memory"].take(len(part))
            yield part
            chunk = decompressor.unconsumed_tail
            await asyncio.sleep(0)  # a few bytes may become many steps
    if not decompressor.eof:
        raise Refusal(f"the body is not valid {encoding}: it is truncated")


async def _read_form(request: Request) -> Body:
    try:
        _, parameters = parse_options_header(request.headers["content-type"])
        if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
            # Other codecs may be slow, or return text that can't be sent.
            raise Refusal("unsupported charset of the form; use UTF-8")
        parser = _MemoryParser(
            request.headers, _decoded(request), max_files=limits.FORM_PARTS, max_fields=limits.FORM_PARTS,
            max_part_size=request.app.settings.max_body * 2**20,
        )  # fmt: skip
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise Refusal(f"invalid form: {getattr(error, 'message', 'the content type has no boundary')}") from None
    images, options = [], {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            request.scope["memory"].take(value.size or 0)
            if not value.size and not value.filename:  # a browser's form without a chosen file
                continue
            images.append(_image(value.filename or key, await value.read()))
            await value.close()
        elif key in FIELDS and not value:
            continue
        elif key in FIELDS:
            if len(value) < 256 and "." in value:
                raise Refusal(f"`{key}` is text, not a file; send the file with -F {key}=@FILE")
            request.scope["memory"].take(2 * len(value))
            images.append(_image(key, base64_text.decode(value, key)))
        else:
            options[key] = value
    return Body(images, options)


def _read_raw(data: bytes, kind: str) -> Body:
    if kind == FORM and FORM_TEXT.fullmatch(data[:BEGINNING]):
        raise Refusal("the body is a URL-encoded form; send the image with --data-binary @FILE or -F image=@FILE")
    if kind == FORM and len(data) > BEGINNING and not data.isascii() and not any(mark in data for mark in b"\r\n\0"):
        raise Refusal("the image has no line breaks and null bytes, which `curl -d` removes; use --data-binary @FILE")
    return Body([EncodedImage("image", base64_text.image_bytes(data))] if data else [])


def _read_json(body: bytearray, memory: Reservation) -> Body:
    if body[:1] > b"\x7f":
        raise Refusal("the body is not JSON; send an image with the content type application/octet-stream")
    record = parse_object(body)
    entries = record.pop("images", None)
    if entries is None:
        entries = [record.pop("image")] if "image" in record else []
    if not isinstance(entries, list):
        raise Refusal("`images` must be a list")
    memory.take(3 * len(body))  # the texts, a copy that is decoded, and what they encode
    images = []
    for index, entry in enumerate(entries):
        name = f"image {index}" if len(entries) > 1 else "image"
        if isinstance(entry, dict):
            if unknown := set(entry) - {"name", "data"}:
                raise Refusal(f"unknown field {', '.join(sorted(unknown))} of an image; choose from name, data")
            name, entry = entry.get("name", name), entry.get("data")
        if not isinstance(entry, str) or not isinstance(name, str):
            raise Refusal("an image must be base64 text, or an object with `name` and `data`")
        images.append(_image(name, base64_text.decode(entry, name)))
    return Body(images, record)


def _image(name: str, data: bytes) -> EncodedImage:
    if len(name) > limits.NAME:
        raise Refusal(f"the name of an image has more than {limits.NAME:,} characters")
    return EncodedImage(name, data)
