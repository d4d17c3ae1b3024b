"""Several hundred broken pictures of all formats: always a result or a line that says why, in bounded time and memory."""

import io
import random
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import EXAMPLES
from serving_helpers import serving

pytestmark = pytest.mark.full  # a real server under real load, over minutes

FORMATS = {
    "JPEG": {"quality": 80}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {}, "PPM": {},
    "TGA": {}, "JPEG2000": {}, "AVIF": {"quality": 60}, "ICO": {}, "PDF": {}, "EPS": {}, "MPO": {},
}  # fmt: skip
EACH = 25


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, zeroed, repeated, grown or shuffled, or with a length that lies."""
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
        else:  # in the head, where sizes are
            place = rng.randrange(min(64, max(1, len(broken))))
            broken[place : place + 2] = rng.randbytes(2)
    return bytes(broken)


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    rng = random.Random(0)
    small = Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((96, 64))
    found = []
    for format, options in FORMATS.items():
        buffer = io.BytesIO()
        small.save(buffer, format, **options)
        found += [mutated(buffer.getvalue(), rng) for _ in range(EACH)]
    return found


def test_broken_pictures_get_a_result_or_a_reason(models, corpus):
    assert len(corpus) == 350
    with serving("-m", models["gap"]) as server:
        good = (EXAMPLES / "rocket.jpg").read_bytes()
        expected = server.ask("POST", "/v1/classify", content=good).json()["results"]
        longest, counts = 0.0, {200: 0, 422: 0}
        for data in corpus:
            began = time.monotonic()
            answer = server.ask("POST", "/v1/classify", content=data or b"\0")
            longest = max(longest, time.monotonic() - began)
            counts[answer.status_code] += 1  # nothing but these two
            if answer.status_code == 422:
                line = answer.json()["error"]
                assert line.startswith("image: ")
                assert "\n" not in line
        assert counts[200] > 20
        assert counts[422] > 100
        assert longest < 10
        # Whatever they were sent with, good pictures are answered as before.
        for start in range(0, len(corpus), 50):
            files = [("a", ("broken", data)) for data in corpus[start : start + 50]] + [("a", ("image", good))]
            results = server.ask("POST", "/v1/classify", files=files).json()["results"]
            assert results[-1] == expected[0]
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
        assert peak < 1.5e9
        assert not [entry for entry in server.log if entry["level"] != "info"]


PROGRAMS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
]


@pytest.mark.parametrize("program", PROGRAMS, ids=["EPS", "SVG"])
def test_what_is_a_program_rather_than_a_picture_is_not_run(server, program):
    answer = server.ask("POST", "/v1/classify", content=program)
    assert (answer.status_code, answer.json()) == (422, {"error": "image: not an image, or an unsupported format"})
