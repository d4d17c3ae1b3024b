"""Benchmark of `vgg serve`: throughput beside the same work without a server, Poisson arrivals, overload, memory, latency, and
the cost of TLS and traces.

    .venv/bin/pip install '.[serve,telemetry]' locust trustme
    .venv/bin/python benchmarks/serving.py vgg16.onnx --images photos/

Server and clients run on this machine. `--parts` selects parts; poisson and overload need the capacity of the server, which
throughput measures and `--capacity` sets.
"""

import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from threading import Thread

import numpy as np
from measurements import Measurements, parser

import vgg

HERE = Path(__file__).parent
WARM_UP = 4  # seconds
PARTS = ("throughput", "poisson", "overload", "memory", "latency", "secured")
ROUNDS = 5
PAIRS, TURNS = 6, 6
BATCHES = (8, 16)  # of the comparison without a server; the better one counts


def pipeline(classifier: vgg.Classifier, images: Path, batch: int, seconds: float) -> float:
    """Images per second without a server: threads decode, the engine runs batches."""
    files = [path.read_bytes() for path in sorted(images.rglob("*.[jJ]*"))[:300]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        queue = cycle(files)
        ahead = [pool.submit(classifier.preprocess, one) for one in islice(queue, 2 * batch)]
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            values = [future.result() for future in ahead[:batch]]
            ahead = ahead[batch:] + [pool.submit(classifier.preprocess, one) for one in islice(queue, batch)]
            classifier.engine.logits(np.stack(values))
            done += batch
    return done / elapsed


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """A running server: its address and process id."""
    command = [sys.executable, "-m", "vgg", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = json.loads(process.stderr.readline())["address"]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(process.stderr.read)
            yield address, process.pid
            process.terminate()
            process.wait()
    finally:
        process.kill()


def load(address: str, images: Path, users: int, seconds: float, arrivals: float = 0) -> dict[str, dict]:
    """Run clients; locust's statistics by response status."""
    environment = {**os.environ, "VGG_IMAGES": str(images), "VGG_RATE": str(arrivals)}
    command = [sys.executable, "-m", "locust", "-f", HERE / "locustfile.py", "--headless", "--host", address, "--json",
               "--users", str(users), "--spawn-rate", "1000", "--run-time", f"{seconds:.0f}s", "--loglevel", "ERROR",
               ]  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 60)
    accounts = {one["name"]: one for one in json.loads(result.stdout)}
    if not accounts:
        raise SystemExit(f"no responses:\n{result.stderr}")
    return accounts


def rate(account: dict) -> float:
    """Responses per second, without the warm-up and the incomplete last second."""
    counts = {int(float(second)): count for second, count in account["num_reqs_per_sec"].items()}
    seconds = range(min(counts) + WARM_UP, max(counts))
    return sum(counts.get(second, 0) for second in seconds) / len(seconds)


def quantile(account: dict, fraction: float) -> float:
    """A quantile of the response time, in milliseconds."""
    times = sorted((float(ms), count) for ms, count in account["response_times"].items())
    left = fraction * sum(count for _, count in times)
    for ms, count in times:
        left -= count
        if left <= 0:
            return ms
    return times[-1][0]


def add(results: Measurements, what: dict[str, object], accounts: dict[str, dict], **values: float) -> None:
    """Save the number of responses and their times in milliseconds, a row for each status."""
    for status, account in sorted(accounts.items()):
        quantiles = {f"ms_p{percent}": quantile(account, percent / 100) for percent in (50, 95, 99)}
        count, total = account["num_requests"], account["total_response_time"]
        results.add({**what, "status": status}, responses=count, ms=total / count, **quantiles, **values)


def memory(process: int) -> float:
    """Resident memory of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000


def latency(address: str, classifier: vgg.Classifier, images: Path, results: Measurements, count: int = 100) -> None:
    """Medians, in turns: the engine and decoding in this process, and a client with and without keep-alive."""
    data = min(images.rglob("*.[jJ]*")).read_bytes()
    kept = http.client.HTTPConnection(address.removeprefix("http://"))

    def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> None:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        assert response.status == 200

    def ask_anew(*request: str | bytes | None) -> None:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        ask(connection, *request)
        connection.close()

    health, classify = ("GET", "/healthz", None), ("POST", "/v1/classify", data)
    work = {
        "the engine and decoding": lambda: classifier.classify(data),
        "/v1/classify, new connections": lambda: ask_anew(*classify),
        "/v1/classify, one connection": lambda: ask(kept, *classify),
        "/healthz, new connections": lambda: ask_anew(*health),
        "/healthz, one connection": lambda: ask(kept, *health),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(count):
        for name, one in work.items():
            started = time.perf_counter()
            one()
            times[name].append(time.perf_counter() - started)
    kept.close()
    for name, seconds in times.items():
        results.add({"measurement": f"latency: {name}"}, ms=1000 * statistics.median(seconds))


class Sink(BaseHTTPRequestHandler):
    """A collector of traces that drops them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def secured() -> Iterator[tuple[str, ...]]:
    """The options of a server with TLS and traces."""
    import trustme

    with tempfile.TemporaryDirectory() as folder, ThreadingHTTPServer(("127.0.0.1", 0), Sink) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        issued = trustme.CA().issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(f"{folder}/pem")
        yield (
            "--tls-cert",
            f"{folder}/pem",
            "--tls-key",
            f"{folder}/pem",
            "--traces",
            f"http://127.0.0.1:{collector.server_port}",
        )
        collector.shutdown()


def processor(process: int) -> float:
    """The CPU time of a process, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def responses(address: str, data: bytes, seconds: float) -> int:
    """The number of responses that four clients get, each on one connection. locust's TLS would take most of the time."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    end = time.perf_counter() + seconds

    def send() -> int:
        scheme, _, host = address.partition("://")
        secure = scheme == "https"
        client = http.client.HTTPSConnection(host, context=context) if secure else http.client.HTTPConnection(host)
        count = 0
        while time.perf_counter() < end:
            client.request("POST", "/v1/classify", data)
            response = client.getresponse()
            response.read()
            assert response.status == 200
            count += 1
        client.close()
        return count

    with ThreadPoolExecutor(4) as pool:
        return sum(future.result() for future in [pool.submit(send) for _ in range(4)])


def cost(model: str, images: Path, seconds: float, results: Measurements) -> None:
    """Throughput and CPU time per request of a server with TLS and traces, beside one without.

    In pairs of `seconds` each, in short turns, so that other programs on the machine affect both.
    """
    data = min(images.rglob("*.[jJ]*")).read_bytes()
    speeds: list[float] = []
    times: list[float] = []
    with secured() as options, server("-m", model) as plain, server("-m", model, *options) as other:
        for _ in range(PAIRS):
            counts, elapsed, spent = (dict.fromkeys((plain, other), 0.0) for _ in range(3))
            for turn in range(TURNS):
                for one in (plain, other) if turn % 2 else (other, plain):
                    before, started = processor(one[1]), time.perf_counter()
                    counts[one] += responses(one[0], data, seconds / TURNS)
                    elapsed[one] += time.perf_counter() - started  # also of the last responses
                    spent[one] += processor(one[1]) - before
            speed = counts[plain] / elapsed[plain]
            speeds.append(counts[other] / elapsed[other] / speed)
            times.append(spent[other] / counts[other] / (spent[plain] / counts[plain]))
    for name, ratios in (("throughput", speeds), ("CPU time per request", times)):
        spread = {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        results.add({"measurement": f"TLS and traces / without: {name}"}, rounds=PAIRS, **spread)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model")
    options.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--capacity", type=float, default=0.0, help="images per second")
    options.add_argument("--requests", type=int, default=20_000, help="number of requests of the part memory")
    given = options.parse_args()
    parts, capacity, results = given.parts.split(","), given.capacity, Measurements("serving", given.output)
    if "secured" in parts:
        cost(given.model, given.images, given.seconds / 6, results)
    if parts == ["secured"]:
        return
    classifier = vgg.load(given.model)
    with server("-m", given.model) as (address, process):
        if "throughput" in parts:
            shares, rates = [], []
            for _ in range(ROUNDS):
                alone = max(pipeline(classifier, given.images, batch, given.seconds / 4) for batch in BATCHES)
                accounts = load(address, given.images, 32, given.seconds / 2)
                rates.append(rate(accounts["200"]))
                shares.append(rates[-1] / alone)
            capacity, shared = statistics.median(rates), statistics.median(shares)
            what = {"measurement": "32 clients / pipeline without a server"}
            add(results, what, accounts, rounds=ROUNDS, images_per_s=capacity, ratio=shared)
        if "latency" in parts:
            latency(address, classifier, given.images, results)
        if "poisson" in parts:
            accounts = load(address, given.images, 1, given.seconds, 0.8 * capacity)
            add(results, {"measurement": "random arrivals at 80% of the capacity"}, accounts, arrivals_per_s=0.8 * capacity)
        if "overload" in parts:
            accounts = load(address, given.images, 32, given.seconds / 4)
            add(results, {"measurement": "before overload"}, accounts, images_per_s=rate(accounts["200"]))
            accounts = load(address, given.images, 1, given.seconds / 2, 5 * capacity)
            add(results, {"measurement": "overload, 5 times the capacity"}, accounts, arrivals_per_s=5 * capacity)
            time.sleep(2)
            accounts = load(address, given.images, 32, given.seconds / 4)
            add(results, {"measurement": "after overload"}, accounts, images_per_s=rate(accounts["200"]))
        if "memory" in parts:
            done, initial = 0, memory(process)
            while done < given.requests:
                accounts = load(address, given.images, 32, given.seconds / 6)
                done += sum(one["num_requests"] for one in accounts.values())
                results.add({"measurement": "memory", "responses": done}, mb=memory(process), mb_initially=initial)


if __name__ == "__main__":
    main()
