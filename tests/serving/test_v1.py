"""Images at /v1/classify."""

import base64
import gzip
import json
import re
import socket
import warnings
import zlib

import httpx
import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static

import vgg
from conftest import EXAMPLES
from serving_helpers import serving
from vgg import engines

PHOTOS = sorted(EXAMPLES.glob("*.*g"))
CLASSIFY = "/v1/classify"
GZIP = {"content-encoding": "gzip"}
JSON, FORM = {"content-type": "application/json"}, {"content-type": "application/x-www-form-urlencoded"}
STRIPPED = PHOTOS[0].read_bytes().translate(None, b"\r\n\0")


@pytest.fixture(scope="module")
def expected(models) -> dict[str, list[dict]]:
    """The library's predictions for the photos."""
    classifier = vgg.load(models["other"])
    return {
        photo.name: [
            {"label": one.label, "score": round(one.score, 6), "index": one.index, "wnid": one.wnid}
            for one in classifier.classify(photo, top=3)
        ]
        for photo in PHOTOS
    }


def near(found: list[dict], expected: list[dict]) -> bool:
    return [one["label"] for one in found] == [one["label"] for one in expected] and all(
        abs(one["score"] - other["score"]) < 1e-4 for one, other in zip(found, expected, strict=True)
    )


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def form_with(text):
    """A form with the text of an image, longer than the parser's own limit."""
    return f'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n{text}\r\n--x--\r\n'.encode()


def test_every_format_of_a_body_gets_the_librarys_predictions(server, expected):
    photo = PHOTOS[0]
    data = photo.read_bytes()
    encoded = base64.b64encode(data).decode()
    forms = [
        {"content": data},
        {"content": data, "headers": {"content-type": "image/png"}},
        {"content": data, "headers": {"content-type": "application/x-www-form-urlencoded"}},  # curl --data-binary
        {"content": gzip.compress(data, 1), "headers": {"content-encoding": "gzip"}},
        {"files": {"any": data}},
        {"content": gzip.compress(form_with(encoded + "\n" * 2**20)), "headers": {**MULTIPART, "content-encoding": "gzip"}},
        {"json": {"image": encoded}},
        {"json": {"images": [encoded]}},
        {"json": {"images": [{"name": "it", "data": f"data:image/png;base64,{encoded}"}]}},
    ]
    for form in forms:
        response = server.ask("POST", CLASSIFY, params={"top": 3}, **form)
        assert response.status_code == 200, response.text
        record = response.json()
        assert set(record) == {"model", "results", "timing"}
        assert record["model"] == {"name": "gap", "version": "2"}  # the default model in its newest version
        assert near(record["results"][0]["predictions"], expected[photo.name])


WRITTEN = {  # base64 as programs write it
    "MIME": lambda data: base64.encodebytes(data).decode(),
    "MIME with CR": lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n"),
    "blanks": lambda data: f" {base64.b64encode(data).decode()[:40]} \t {base64.b64encode(data).decode()[40:]}\n",
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "without padding": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "data URL": lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
    "data URL with parameters": lambda data: f"DATA:image/png;name=a.png;BASE64,{base64.encodebytes(data).decode()}",
}


@pytest.mark.parametrize("written", WRITTEN)
def test_base64_may_be_written_in_any_way(server, written):
    photos = [bytes(PHOTOS[0].read_bytes()) + bytes(more) for more in range(3)]  # of each length of the padding
    expected = [server.ask("POST", CLASSIFY, content=photo).json()["results"][0]["predictions"] for photo in photos]
    for photo, predictions in zip(photos, expected, strict=True):
        text = WRITTEN[written](photo)
        for form in (
            {"json": {"image": text}},
            {"content": '{"image": "%b"}'.replace("%b", text)},  # with its line breaks, as shells put it into JSON
            {"content": text, "headers": {"content-type": "application/octet-stream"}},
            {"files": {"image": (None, text)}},  # a field of a form
        ):
            response = server.ask("POST", CLASSIFY, **form)
            assert response.status_code == 200, response.text
            assert response.json()["results"][0]["predictions"] == predictions


def test_several_images_get_results_in_order_and_a_broken_one_an_error(server, expected):
    files = [("a", (photo.name, photo.read_bytes())) for photo in PHOTOS]
    files.insert(1, ("a", ("notes.txt", b"no picture")))
    results = server.ask("POST", CLASSIFY, files=files, data={"top": "3"}).json()["results"]
    assert [one["image"] for one in results] == [PHOTOS[0].name, "notes.txt", *(photo.name for photo in PHOTOS[1:])]
    assert results[1] == {"image": "notes.txt", "error": "notes.txt: not an image, or an unsupported format"}
    for result in results[:1] + results[2:]:
        assert near(result["predictions"], expected[result["image"]])


def test_the_model_and_its_version_can_be_chosen(server):
    data = PHOTOS[0].read_bytes()
    for params, chosen in (({"model": "fc"}, "fc"), ({"model": "gap", "version": "1"}, "gap"), ({"version": "2"}, "gap")):
        record = server.ask("POST", CLASSIFY, params=params, content=data).json()
        assert record["model"] == {"name": chosen, "version": params.get("version", "1")}
    listed = server.ask("GET", "/v1/models").json()["models"]
    assert [(one["name"], one["version"], one["explains"]) for one in listed] == [
        ("gap", "2", True), ("gap", "1", True), ("fc", "1", True),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "file"), [("gap", "other"), ("fc", "fc")])
def test_a_heat_map_equals_the_librarys(server, models, name, file):
    query = {"explain": "true", "model": name}
    result = server.ask("POST", CLASSIFY, params=query, content=PHOTOS[0].read_bytes()).json()["results"][0]
    found = result["explanation"]
    assert found["index"] == result["predictions"][0]["index"]
    expected = vgg.load(models[file]).explain(PHOTOS[0])
    assert expected.classes[0].index == found["index"]
    np.testing.assert_allclose(found["map"], expected.maps[0], atol=1e-3 * np.abs(expected.maps).max())
    assert found["box"] == pytest.approx(expected.area, abs=1e-6)
    left, top, right, bottom = found["box"]  # chelsea is 451x300, its crop is 224 of a short side of 256
    assert (right - left) * 451 == pytest.approx((bottom - top) * 300, abs=1)
    assert bottom - top == pytest.approx(224 / 256)


def test_a_file_that_quantizes_activations_has_heat_maps_on_the_native_engine_alone(models, tmp_path):
    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"data": vgg.preprocess(PHOTOS[0])}]

        def get_next(self):
            return self.left.pop() if self.left else None

    plain = onnx.load(models["fc"])
    del plain.metadata_props[:]  # which include the checksum of the weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(plain, tmp_path / "quantized.onnx", Images())
    if engines.native_library():
        with serving("-m", tmp_path / "quantized.onnx", "-e", "native") as server:
            response = server.ask("POST", CLASSIFY, params={"explain": "true"}, content=PHOTOS[0].read_bytes())
            assert response.status_code == 200
    with serving("-m", tmp_path / "quantized.onnx", "-e", "onnxruntime") as server:
        assert [one["explains"] for one in server.ask("GET", "/v1/models").json()["models"]] == [False]
        response = server.ask("POST", CLASSIFY, params={"explain": "true"}, content=PHOTOS[0].read_bytes())
        assert response.status_code == 501
        assert response.json() == {"error": "model quantized has no heat maps: its file quantizes activations"}
        assert server.ask("POST", CLASSIFY, content=PHOTOS[0].read_bytes()).status_code == 200


@pytest.mark.parametrize(
    ("options", "status", "line"),
    [
        ({"content": b""}, 400, "the request contains no image"),
        ({"content": b"not a picture"}, 422, "image: not an image, or an unsupported format"),
        ({"content": PHOTOS[0].read_bytes()[:5000]}, 422, "image: is damaged or truncated"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported content type text/plain"),
        ({"content": b"x", "headers": {"content-encoding": "br"}}, 415, "unsupported content encoding br"),
        ({"content": b"no gzip", "headers": GZIP}, 400, "the body is not valid gzip"),
        ({"content": gzip.compress(b"x" * 99)[:-9], "headers": GZIP}, 400, "the body is not valid gzip: it is truncated"),
        ({"content": gzip.compress(bytes(2**24)), "headers": GZIP}, 413, "the body is larger than 8 MiB"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the body is not valid JSON"),
        ({"json": []}, 400, "the body must be a JSON object"),
        ({"json": {"image": "https://example.org/cat.jpg"}}, 400, "image: invalid base64; the server does not download images"),
        ({"json": {"image": "AAAAA"}}, 400, "image: invalid base64"),
        ({"json": {"image": "AA=A"}}, 400, "image: invalid base64"),
        ({"json": {"image": "data:image/svg+xml,%3Csvg%3E"}}, 400, "image: invalid base64"),
        ({"json": {"image": "b'AAAA'"}}, 400, "image: Python's repr of bytes is not base64"),
        ({"content": PHOTOS[0].read_bytes(), "headers": JSON}, 400, "the body is not JSON; send an image with the"),
        ({"data": {"image": "AAAA"}}, 400, "the body is a URL-encoded form; send the image with --data-binary @FILE or -F"),
        ({"content": STRIPPED, "headers": FORM}, 400, "the image has no line breaks and null bytes, which `curl -d` removes"),
        ({"files": {"image": (None, "cat.jpg")}}, 400, "`image` is text, not a file; send the file with -F image=@FILE"),
        ({"files": {"image": ("", b"")}}, 400, "the request contains no image"),
        ({"json": {"image": "AAAA", "size": 3}}, 400, "unknown option size; choose from top"),
        ({"json": {"images": []}}, 400, "the request contains no image"),
        ({"json": {"images": ["AAAA"] * 65}}, 413, "65 images in one request; the maximum is 64"),
        ({"content": b"x", "params": {"top": "0"}}, 400, "top must be an integer of 1 or more"),
        ({"content": b"x", "params": {"explain": "perhaps"}}, 400, "explain must be true or false"),
        ({"content": b"x", "params": {"model": "resnet"}}, 404, "unknown model 'resnet'; choose from gap, fc"),
        ({"content": b"x", "params": {"version": "9"}}, 404, "unknown version '9' of model gap; choose from 1, 2"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid form"),
    ],
)  # fmt: skip
def test_an_invalid_request_gets_a_message(server, options, status, line):
    response = server.ask("POST", CLASSIFY, **options)
    assert (response.status_code, set(response.json())) == (status, {"error"})
    assert response.json()["error"].startswith(line)


@pytest.mark.parametrize(
    ("side", "options", "line"),
    [
        (20_000, (), "has more than 178,956,970 pixels"),
        (6_000, ("--decode-mib", 80), "memory to be decoded; the maximum is 80 MiB (`vgg serve --decode-mib`)"),
    ],
)
def test_a_large_image_is_refused_before_decoding(models, side, options, line):
    # The header of a PNG declares the pixels; there are none.
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + side.to_bytes(4) * 2 + b"\x08\2\0\0\0"
    data = head + zlib.crc32(head[12:]).to_bytes(4) + b"\0\0\0\0IEND\xaeB`\x82"
    with serving("-m", models["gap"], *options) as server:
        response = server.ask("POST", CLASSIFY, content=data)
        assert response.status_code == 422
        assert response.json()["error"].startswith("image: ")
        assert line in response.json()["error"]
        assert server.ask("POST", CLASSIFY, content=PHOTOS[0].read_bytes()).status_code == 200


def test_unknown_paths_and_methods_get_the_same_error_format(server):
    line = "no such path: /nothing; use GET /docs, which describes all paths"
    assert server.ask("GET", "/nothing").json() == {"error": line}
    response = server.ask("GET", CLASSIFY)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json() == {"error": "/v1/classify does not support this method; use POST"}


@pytest.mark.parametrize(
    ("method", "path", "status", "line"),
    [
        ("POST", "/predict", 404, "use POST /v1/classify with an image"),
        ("POST", "/api/v1/classify/", 404, "use POST /v1/classify with an image"),
        ("POST", "/v1/clasify", 404, "use POST /v1/classify"),
        ("POST", "/v2/models/gap/predict", 404, "use POST /v2/models/gap/infer"),
        ("POST", "/v2/models/gap/versions/1/infer/", 404, "use POST /v2/models/MODEL/versions/VERSION/infer"),
        ("POST", "/v2/model/gap/infer", 404, "use POST /v2/models/MODEL/infer"),
        ("POST", "/v1/models/gap/predict", 404, "use POST /v1/models/gap:predict"),
        ("POST", "/v1/models/gap:explain", 404, "use POST /v1/classify?explain=true&model=gap"),
        ("POST", "/v1/models/gap/labels/stable:predict", 404, "use POST /v1/models/gap:predict, without a label"),
        ("POST", "/predictions", 404, "use POST /predictions/MODEL"),
        ("POST", "/invocation", 404, "use POST /invocations"),
        ("GET", "/v2/models", 404, "use GET /v1/models"),
        ("GET", "/health", 404, "use GET /healthz"),
        ("GET", "/" + "a" * 5000, 404, "use GET /docs, which describes all paths"),
        ("GET", "/v1/models/gap:predict", 405, "use POST"),
        ("GET", "/v2/models/gap/infer", 405, "use POST"),
        ("GET", "/predictions/gap", 405, "use POST or PUT"),
        ("GET", "/invocations", 405, "use POST"),
        ("POST", "/v1/models/gap", 405, "use GET or POST /v1/models/gap:predict"),
        ("POST", "/v2/models/gap/versions/1", 405, "use GET or POST /v2/models/gap/infer"),
        ("PUT", "/v1/models", 405, "use GET or POST /v1/classify"),
    ],
)
def test_a_request_for_a_wrong_path_or_method_is_shown_the_right_one(server, method, path, status, line):
    response = server.ask(method, path)
    assert response.status_code == status
    record = response.json()
    assert record.get("error", record.get("message")).endswith(f"; {line}")
    assert len(response.content) < 2000


def test_a_large_body_is_refused_before_its_end(server):
    host, port = server.address.removeprefix("http://").split(":")
    for framing in (b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: vgg\r\n" + framing + b"\r\n\r\n")
            chunk = bytes(2**20)
            for _ in range(10 if b"chunked" in framing else 1):
                connection.sendall(b"100000\r\n" + chunk + b"\r\n" if b"chunked" in framing else chunk)
            response = connection.recv(65536)
            assert response.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in response
    # A client that sends the whole body before it reads still gets the response.
    response = httpx.post(server.address + CLASSIFY, content=bytes(50 * 2**20), timeout=60)
    assert response.json() == {"error": "the body is larger than 8 MiB"}


def test_a_body_that_does_not_arrive_times_out(models):
    with serving("-m", models["gap"], "--deadline-seconds", 0.5) as server:
        host, port = server.address.removeprefix("http://").split(":")
        for path in (b"/v1/classify", b"/v2/repository/index", b"/v2/repository/models/gap/load"):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(b"POST %b HTTP/1.1\r\nHost: vgg\r\nContent-Length: 1000\r\n\r\nabc" % path)
                assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_response_that_is_not_read_ends_with_the_deadline(models):
    image = np.zeros((1, 3, 1024, 1024), np.float32).tobytes()
    inputs = [{"name": "data", "datatype": "FP32", "shape": [1, 3, 1024, 1024], "parameters": {"binary_data_size": len(image)}}]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "conv1_1", "parameters": {"binary_data": True}}]}).encode()
    lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d" % (len(head), len(head) + len(image))
    request = b"POST /v2/models/gap/infer HTTP/1.1\r\nHost: vgg\r\n%b\r\n\r\n%b%b" % (lengths, head, image)
    with serving("-m", models["gap"], "--deadline-seconds", 2) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.address.removeprefix("http://").split(":")
        connection.settimeout(60)
        connection.connect((host, int(port)))
        connection.sendall(request)
        assert server.logged(message="the client did not read the response")
        assert "internal error" not in str(server.log)
        with socket.create_connection((host, int(port)), timeout=60) as reader:
            reader.sendall(request)
            response = b""
            while b"\r\n\r\n" not in response or len(response.partition(b"\r\n\r\n")[2]) < size_of(response):
                response += reader.recv(2**20)
            assert response.startswith(b"HTTP/1.1 200")
            assert size_of(response) > 2 * 4 * 1024**2


def size_of(response):
    """The length of a response's body by its headers."""
    return int(re.search(rb"\ncontent-length: (\d+)", response.lower())[1])


def test_the_response_has_the_requests_id(server):
    response = server.ask("POST", CLASSIFY, content=PHOTOS[0].read_bytes(), headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    assert len(server.ask("GET", "/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32
    entry = server.logged(request_id="abc-1")[0]
    assert (entry["status"], entry["model"], entry["images"], entry["path"]) == (200, "gap:2", 1, CLASSIFY)
