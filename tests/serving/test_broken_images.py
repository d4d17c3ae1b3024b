"""Several hundred broken images of all formats: always a result or an error, within the deadline and in bounded memory."""

import io
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from conftest import EXAMPLES
from serving_helpers import serving
from vgg.image_formats import prepare_pillow

FORMATS = {
    "JPEG": {"quality": 80}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {}, "PPM": {},
    "TGA": {}, "JPEG2000": {}, "AVIF": {"quality": 60}, "HEIF": {}, "ICO": {}, "PDF": {}, "EPS": {}, "MPO": {},
}  # fmt: skip
EACH = 25


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Truncated, overwritten, zeroed, repeated or extended data, or with a wrong length in it."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(7), rng.randrange(max(1, len(broken)))
        if kind == 0:
            del broken[at:]
        elif kind == 1:
            for _ in range(rng.randint(1, 20)):
                if broken:
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
        elif kind == 2:
            broken[at : at + 64] = bytes(64)
        elif kind == 3:
            broken[at:at] = broken[at : at + 500]
        elif kind == 4:
            broken += rng.randbytes(rng.randint(1, 2000))
        elif kind == 5:
            broken[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        else:  # in the header, which contains sizes
            place = rng.randrange(min(64, max(1, len(broken))))
            broken[place : place + 2] = rng.randbytes(2)
    return bytes(broken)


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    prepare_pillow()  # HEIC is written as well
    rng = random.Random(0)
    small = Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((96, 64))
    corpus = []
    for format, options in FORMATS.items():
        buffer = io.BytesIO()
        small.save(buffer, format, **options)
        corpus += [mutated(buffer.getvalue(), rng) for _ in range(EACH)]
    return corpus


def test_broken_images_get_a_result_or_an_error(models, corpus):
    assert len(corpus) == 375
    with serving("-m", models["gap"]) as server:
        good = (EXAMPLES / "rocket.jpg").read_bytes()
        expected = server.ask("POST", "/v1/classify", content=good).json()["results"][0]["predictions"]
        with ThreadPoolExecutor(4) as pool:
            responses = list(pool.map(lambda data: server.ask("POST", "/v1/classify", content=data or b"\0"), corpus))
        counts = {200: 0, 422: 0}
        for response in responses:
            counts[response.status_code] += 1  # no other status, so none passed the deadline either
            if response.status_code == 422:
                message = response.json()["error"]
                assert message.startswith("image: ")
                assert "\n" not in message
        assert counts[200] > 20
        assert counts[422] > 100
        # A good image gets the same result with any broken images in the same request.
        for start in range(0, len(corpus), 50):
            files = [("a", ("broken", data)) for data in corpus[start : start + 50]] + [("a", ("image", good))]
            results = server.ask("POST", "/v1/classify", files=files).json()["results"]
            assert [one["label"] for one in results[-1]["predictions"]] == [one["label"] for one in expected]
            scores = [one["score"] for one in results[-1]["predictions"]]
            assert scores == pytest.approx([one["score"] for one in expected], abs=1e-5)  # rounding depends on the batch
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
        assert peak < 1e9
        # Damaged images are no warnings, and no library writes to standard error.
        assert not [entry for entry in server.log if entry["level"] != "info"]
        assert not server.other


PROGRAMS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
]


@pytest.mark.parametrize("program", PROGRAMS, ids=["EPS", "SVG"])
def test_image_formats_that_are_programs_are_not_run(server, program):
    response = server.ask("POST", "/v1/classify", content=program)
    assert response.status_code == 422
    assert response.json()["error"] in (
        "image: not an image, or an unsupported format", "image: is an SVG drawing; convert it to JPEG or PNG"
    )  # fmt: skip
