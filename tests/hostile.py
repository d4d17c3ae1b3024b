"""Requests of hostile clients: each is small or at most 30 MB, and would take much memory or time to refuse.

The tests and the fuzzing harness share them. `python tests/hostile.py HOST:PORT GRPC_HOST:PORT SECONDS` sends all of them to a
server, again and again, and prints how often each status was the response.
"""

import gzip
import http.client
import itertools
import json
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

SIZE = 30 * 2**20
INFER, CLASSIFY = "/v2/models/gap/infer", "/v1/classify"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}


@dataclass(frozen=True)
class Hostile:
    """A request and the statuses that it may get."""

    name: str
    path: str
    body: Callable[[], bytes]
    statuses: Sequence[int] = (400,)
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    method: str = "POST"
    memory: float = 200e6  # bytes that the server may take for it


def tensor(shape: str = "[1,3,32,32]", data: str | bytes = "[0]", more: str = "", **fields: str) -> bytes:
    """An inference request of raw JSON texts."""
    one = {"name": '"data"', "datatype": '"FP32"', "shape": shape, **fields}
    head = ",".join(f'"{key}":{text}' for key, text in one.items())
    raw = data if isinstance(data, bytes) else data.encode()
    return b'{"inputs":[{%b,"data":%b}]%b}' % (head.encode(), raw, more.encode())


def repeated(text: str, size: int = SIZE) -> bytes:
    """A JSON list that repeats a text."""
    return b"[%b%b]" % (f"{text},".encode() * (size // (len(text) + 1) - 1), text.encode())


def png(side: int, content: bytes = b"") -> bytes:
    """The header of an RGBA image, and its compressed pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(b"IDAT", content) if content else b"") + chunk(b"IEND", b"")


def black_png(side: int) -> bytes:
    """A valid RGBA image of few bytes."""
    row = bytes(4 * side + 1)
    compressor = zlib.compressobj(1)
    return png(side, b"".join([compressor.compress(row) for _ in range(side)]) + compressor.flush())


def part(head: str, content: bytes = b"") -> bytes:
    return b"--x\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


def outputs(count: int, names: Sequence[str]) -> bytes:
    """A valid request for large outputs."""
    values = np.zeros((count, 3, 256, 256), np.float32)
    requested = json.dumps([{"name": name} for name in names])
    return tensor(json.dumps(values.shape), json.dumps(values.ravel().astype(int).tolist()), f',"outputs":{requested}')


def disposition(fields: str) -> str:
    return f"Content-Disposition: form-data; {fields}"


def small_bomb() -> bytes:
    """As much as a body may have."""
    return gzip.compress(bytes(31 * 2**20))


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def proto(number: int, content: bytes) -> bytes:
    """A field of a protobuf message: text, bytes, a message or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def message(shape: bytes, contents: bytes = b"", more: bytes = b"", name: bytes = b"data") -> bytes:
    """A ModelInferRequest with one input."""
    one = proto(1, name) + proto(2, b"FP32") + proto(3, shape) + (proto(5, contents) if contents else b"")
    return proto(1, b"gap") + proto(5, one) + more


EMPTIES = ("[]", "{}", '""', "0", "null")
GZIP = {"content-encoding": "gzip"}
FILE = disposition('name="a"; filename="b"')
MANY = "data of {}, as many as the shape needs"
TENSORS = [
    Hostile("shape of 200,000 sides", INFER, lambda: tensor(repeated("9", 400_000).decode(), "[]")),
    Hostile("shape of 30,000 sides", INFER, lambda: tensor(repeated("9", 60_000).decode(), "[]")),
    Hostile("shape of 65 sides", INFER, lambda: tensor(json.dumps([1] * 62 + [3, 32, 32]), json.dumps([0] * 3072))),
    Hostile("shape of large sides", INFER, lambda: tensor("[1{0},3,1{0},1{0}]".format("0" * 4000), "[]"), (400, 413)),
    Hostile("long and empty strings", INFER, lambda: tensor(data=json.dumps(["a" * 20_000] + [""] * 20_000))),
    Hostile("deep data", INFER, lambda: tensor(data="[" * SIZE)),
    Hostile("a deep name", INFER, lambda: tensor(name="[" * 900 + "]" * 900)),
    Hostile("a long id", INFER, lambda: tensor(more=f',"id":"{"a" * SIZE}"')),
    Hostile("a long name", INFER, lambda: tensor(name=f'"{"a" * SIZE}"')),
    Hostile("a number of many digits", INFER, lambda: tensor(data=f"[{'1' * SIZE}]")),
    Hostile("numbers of many digits", INFER, lambda: tensor(data=repeated("0." + "1" * 9000, 3072 * 9003))),
    Hostile("ten million numbers", INFER, lambda: tensor("[1,3,1024,1024]", repeated("0.5", SIZE))),
    Hostile("large outputs", INFER, lambda: outputs(8, ("conv1_1", "conv2_1", "pool1")), (413,)),
    Hostile("a timeout of many digits", INFER, lambda: tensor(more=f',"parameters":{{"timeout":1{"0" * 5000}}}')),
    Hostile(
        "a timeout of 10^400", INFER,
        lambda: tensor(data=json.dumps([0] * 3072), more=f',"parameters":{{"timeout":1{"0" * 400}}}'), (200,),
    ),
    Hostile("a length of many digits", INFER, lambda: b"{}", headers={**JSON, "inference-header-content-length": "9" * 8000}),
    *(Hostile(f"data of {one}", INFER, lambda one=one: tensor(data=repeated(one))) for one in EMPTIES),
    *(
        Hostile(MANY.format(one), INFER, lambda one=one: tensor("[3,3,1024,1024]", repeated(one, 9 * 2**20 * 3)))
        for one in EMPTIES[:3]
    ),
    *(
        Hostile(f"outputs of {one}", INFER, lambda one=one: tensor(more=f',"outputs":{repeated(one).decode()}'))
        for one in EMPTIES
    ),
    *(Hostile(f"inputs of {one}", INFER, lambda one=one: b'{"inputs":%b}' % repeated(one)) for one in EMPTIES),
]  # fmt: skip
IMAGES = [
    *(Hostile(f"images of {one}", CLASSIFY, lambda one=one: b'{"images":%b}' % repeated(one)) for one in EMPTIES),
    Hostile("deep JSON", CLASSIFY, lambda: b'{"image":' + b"[" * SIZE),
    Hostile("many keys", CLASSIFY, lambda: b"{%b}" % b",".join(b'"%d":0' % one for one in range(2_000_000))),
    Hostile("a long key", CLASSIFY, lambda: b'{"image":"AAAA","%b":0}' % (b"a" * SIZE)),
    Hostile("a long name of an image", CLASSIFY, lambda: b'{"image":{"name":"%b","data":"AAAA"}}' % (b"a" * SIZE)),
    Hostile("a long image", CLASSIFY, lambda: b'{"image":"%b"}' % (b"A" * SIZE), (422,)),
    Hostile("a lone surrogate", CLASSIFY, lambda: rb'{"image":{"name":"\ud800","data":"AAAA"}}'),
    Hostile("a surrogate beside text", CLASSIFY, lambda: rb'{"image":{"name":"\udc80abcdef","data":"AAAA"}}'),
    Hostile("an image of 400 megapixels", CLASSIFY, lambda: png(20_000), (422,), {}),
    Hostile("a black image of 25 megapixels", CLASSIFY, lambda: black_png(5000), (200,), {}, memory=600e6),
    Hostile("an image of 144 megapixels", CLASSIFY, lambda: png(12_000), (422,), {}),
]
FORMS = [
    *(
        Hostile(
            f"a form in {charset}", CLASSIFY,
            lambda: form(part(disposition(r'name="a"; filename="\ud800"')), part(disposition('name="a"'), b"a" * 900_000)),
            headers={"content-type": f"multipart/form-data; boundary=x; charset={charset}"},
        )
        for charset in ("unicode_escape", "undefined", "punycode")
    ),
    Hostile("a form of empty parts", CLASSIFY, lambda: form(part(disposition('name="a"')) * 400_000), headers=FORM),
    Hostile("a form of empty headers", CLASSIFY, lambda: form(part("a:b\r\n" * 5_000_000)), headers=FORM),
    Hostile("a form of a long name", CLASSIFY, lambda: form(part(disposition(f'name="{"a" * SIZE}"'))), headers=FORM),
    Hostile("a form of line breaks", CLASSIFY, lambda: form(part(FILE, b"\r" * SIZE)), (422,), FORM),
]  # fmt: skip
COMPRESSED = [
    Hostile("a bomb", CLASSIFY, lambda: gzip.compress(bytes(2**27)), (413,), GZIP),
    Hostile("a small bomb", CLASSIFY, small_bomb, (422,), GZIP),
    Hostile("compressed data", INFER, lambda: gzip.compress(tensor(data=repeated("[]")), 1), headers={**JSON, **GZIP}),
    Hostile("data after the end", CLASSIFY, lambda: gzip.compress(b"x") + bytes(SIZE), (422,), GZIP),
]
OTHERS = [
    *(
        Hostile(f"a repository index of {one}", "/v2/repository/index", lambda one=one: b'{"ready":%b}' % repeated(one))
        for one in EMPTIES
    ),
    Hostile("a path of control characters", "/v1/%0d%0a%1b%5b31m%c2%9bred%e2%80%a8x", bytes, (404,), {}, "GET"),
    Hostile("a length that is no number", CLASSIFY, bytes, (400,), {"content-length": "9" * 4000}),
]
PREDICT = "/v1/models/gap:predict"


def rows(text: str, size: int = SIZE) -> bytes:
    """A request of TensorFlow Serving's REST interface whose instances repeat a text."""
    return b'{"instances":%b}' % repeated(text, size)


INSTANCES = [
    *(Hostile(f"instances of {one}", PREDICT, lambda one=one: rows(one)) for one in (*EMPTIES, '{"b64":""}', "[[{}]]")),
    Hostile("four million instances", PREDICT, lambda: rows("[[[0]]]"), (413,)),
    Hostile("ten million numbers in instances", PREDICT, lambda: b'{"instances":[[[%b]]]}' % repeated("0.5")),
    Hostile("brackets and blanks", PREDICT, lambda: b'{"instances":[[[[0]%b' % (b"] " * (SIZE // 2))),
    Hostile("blanks between brackets", PREDICT, lambda: b'{"instances":[[[[0]%b]]]}' % (b" " * SIZE)),
    Hostile("deep instances", PREDICT, lambda: b'{"instances":' + b"[" * SIZE),
    Hostile("deep instances with an end", PREDICT, lambda: b'{"instances":%b}' % (b"[" * 900 + b"0" + b"]" * 900)),
    Hostile("many keys of an instance", PREDICT, lambda: b'{"instances":[{%b}]}' % repeated('"a":0')[1:-1]),
    Hostile(
        "many different keys", PREDICT, lambda: b'{"inputs":{%b}}' % b",".join(b'"%d":0' % one for one in range(2_000_000))
    ),
    Hostile("many numbers of an instance", PREDICT, lambda: b'{"instances":[{"data":%b}]}' % repeated("0")),
    Hostile("a long instance", PREDICT, lambda: rows(f'{{"b64":"{"A" * (SIZE - 100)}"}}', 0)),
    Hostile("an instance of line breaks", PREDICT, lambda: rows('"%s"' % ("\n" * (SIZE - 100)), 0)),
    Hostile("line breaks and an error", PREDICT, lambda: b"\n" * SIZE + b"x"),
    Hostile("an instance of commas", PREDICT, lambda: rows(f'"data:{"," * SIZE}"', 0)),
    Hostile("a long data URL", PREDICT, lambda: rows(f'"data:{";" * SIZE},"', 0)),
    Hostile("no instances", PREDICT, lambda: b'{"%b":0}' % (b"a" * SIZE)),
    Hostile("a long path", "/v1/models/" + "a" * 15_000, bytes, (404,), {}, "GET"),
]
PIXELS = tensor("[10,3,1024,1024]", "[]", datatype='"UINT8"').replace(
    b'"data":[]', b'"parameters":{"binary_data_size":%d}' % SIZE
)
BINARY = {"inference-header-content-length": str(len(PIXELS))}


def pixels() -> bytes:
    """A valid request that is four times as large in float32."""
    return PIXELS + bytes(SIZE)


ENCODED = [
    Hostile("BYTES of commas", INFER, lambda: tensor("[1]", repeated("0"), datatype='"BYTES"')),
    Hostile("BYTES of brackets", INFER, lambda: tensor("[1]", "[" * SIZE, datatype='"BYTES"')),
    Hostile("a long text of BYTES", INFER, lambda: tensor("[1]", f'["{"A" * SIZE}"]', datatype='"BYTES"')),
    Hostile("UINT8 of a long row", INFER, lambda: tensor("[1,99999999999999]", repeated("0"), datatype='"UINT8"')),
    Hostile("ten million UINT8", INFER, lambda: tensor("[1,15728640]", repeated("0"), datatype='"UINT8"')),
    Hostile(
        "thirty million pixels", INFER, pixels, (200, 503), {"inference-header-content-length": str(len(PIXELS))}, memory=600e6
    ),
    Hostile("base64 as an image", CLASSIFY, lambda: b"A" * SIZE, (422,), {}),
]
HOSTILE = [*TENSORS, *INSTANCES, *ENCODED, *IMAGES, *FORMS, *COMPRESSED, *OTHERS]


def encoded(raw: bytes) -> bytes:
    """A ModelInferRequest with the bytes of one encoded image."""
    one = proto(1, b"data") + proto(2, b"BYTES") + proto(3, b"\1")
    return proto(1, b"gap") + proto(5, one) + proto(7, raw)


SMALL = b"\1\3" + varint(32) * 2
FLOATS = proto(6, bytes(4 * 3072))
PARAMETER = proto(1, b"timeout") + proto(2, b"\x10" + b"\xff" * 9 + b"\x01")  # -1
LAYERS = b"".join(proto(6, proto(1, name)) for name in (b"conv1_1", b"pool1", b"conv2_1", b"pool2", b"conv3_1"))
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MESSAGES = [
    Hostile("shape of 200,000 sides", MODEL_INFER, lambda: message(b"\t" * 200_000)),
    Hostile("shape of 8,000 sides", MODEL_INFER, lambda: message(b"\t" * 8000)),
    Hostile("shape of thirty million sides", MODEL_INFER, lambda: message(b"\t" * SIZE)),
    Hostile("shape of negative sides", MODEL_INFER, lambda: message((b"\xff" * 9 + b"\x01") * 4)),
    Hostile("empty inputs", MODEL_INFER, lambda: proto(1, b"gap") + proto(5, b"") * (SIZE // 2)),
    Hostile("empty outputs", MODEL_INFER, lambda: message(SMALL, FLOATS, proto(6, b"") * (SIZE // 2))),
    Hostile("empty parameters", MODEL_INFER, lambda: message(SMALL, FLOATS, proto(4, b"") * (SIZE // 2))),
    Hostile("empty contents", MODEL_INFER, lambda: message(SMALL, FLOATS, proto(7, b"") * (SIZE // 2))),
    Hostile("empty byte strings", MODEL_INFER, lambda: message(SMALL, proto(8, b"") * (SIZE // 2))),
    Hostile("packed integers", MODEL_INFER, lambda: message(SMALL, proto(3, bytes(SIZE)))),
    Hostile("five million integers", MODEL_INFER, lambda: message(SMALL, proto(3, bytes(499 * 10_000)))),
    Hostile("shape of two million sides", MODEL_INFER, lambda: message(b"\t" * 2_000_000)),
    Hostile("bytes of a long length", MODEL_INFER, lambda: encoded(b"\xff" * SIZE)),
    Hostile("ten million floats", MODEL_INFER, lambda: message(SMALL, proto(6, bytes(SIZE)))),
    Hostile("a negative timeout", MODEL_INFER, lambda: message(SMALL, FLOATS, proto(4, PARAMETER))),
    Hostile("a long name", MODEL_INFER, lambda: message(SMALL, FLOATS, name=b"a" * SIZE)),
    Hostile("a truncated message", MODEL_INFER, lambda: b"\x2a\xff\xff\xff\xff\x0f"),
    Hostile("no message", MODEL_INFER, lambda: b"\xff" * 100),
    Hostile("groups", MODEL_INFER, lambda: b"\x2b" * SIZE),
    Hostile("large outputs", MODEL_INFER, lambda: message(b"\2\3" + varint(1024) * 2, proto(6, bytes(4 * 6 * 2**20)), LAYERS)),
]  # fmt: skip


def send(host: str, hostile: Hostile, body: bytes) -> tuple[int, bytes]:
    """Send a request, and return the status and the body of the response."""
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.putrequest(hostile.method, hostile.path)
        for header in {"content-length": str(len(body)), **hostile.headers}.items():
            connection.putheader(*header)
        connection.endheaders()
        with suppress(OSError):  # refused before the end of the body
            connection.sock.sendall(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def send_all(host: str, grpc_host: str, seconds: float, clients: int = 3) -> Counter[str]:
    """Send all requests from several clients, beside connections that send nothing; how often each status was the response."""
    import grpc

    end, counts = time.monotonic() + seconds, Counter()
    requests, messages = itertools.cycle(HOSTILE), itertools.cycle(MESSAGES)
    lock = threading.Lock()

    def client() -> None:
        while time.monotonic() < end:
            with lock:
                one = next(requests)
            status, _ = send(host, one, one.body())
            counts[str(status)] += 1
            if status not in (*one.statuses, 503):
                counts[f"unexpected: {one.name}"] += 1

    def call() -> None:
        with grpc.insecure_channel(grpc_host) as channel:
            while time.monotonic() < end:
                one = next(messages)
                try:
                    channel.unary_unary(one.path)(one.body(), timeout=60)
                    counts[f"unexpected: {one.name}"] += 1
                except grpc.RpcError as refused:
                    counts[refused.code().name] += 1

    def idle() -> None:
        while time.monotonic() < end:
            connection = http.client.HTTPConnection(host, timeout=60)
            connection.connect()
            connection.send(b"POST /v1/classify HTTP/1.1\r\ncontent-length: 9\r\n\r\n")
            time.sleep(1)
            connection.close()

    threads = [threading.Thread(target=work) for work in (*[client] * clients, call, *[idle] * 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


if __name__ == "__main__":
    print(json.dumps(send_all(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
