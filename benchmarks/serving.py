"""How `vgg serve` bears load: beside the same work without a server, at Poisson arrivals, overloaded, and over many requests.

    .venv/bin/pip install '.[serve]' locust
    .venv/bin/python benchmarks/serving.py vgg16.onnx --pictures photos/

All of it stays on this machine's loopback, and each part ends by itself. `--parts` chooses among throughput, poisson, overload
and memory; poisson and overload need to know the capacity, so throughput comes before them, or `--capacity` says it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np

import vgg

HERE = Path(__file__).parent
FILLING = 4  # seconds
PARTS = ("throughput", "poisson", "overload", "memory")
ROUNDS = 5
BATCHES = (8, 16)  # the better one of which counts


def pipeline(classifier: vgg.Classifier, pictures: Path, batch: int, seconds: float) -> float:
    """Pictures a second in this process: decoding threads before the engine."""
    files = [path.read_bytes() for path in sorted(pictures.rglob("*.[jJ]*"))[:300]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        todo = cycle(files)
        ahead = [pool.submit(classifier.preprocess, one) for one in islice(todo, 2 * batch)]
        done, begun = 0, time.perf_counter()
        while (took := time.perf_counter() - begun) < seconds:
            values = [future.result() for future in ahead[:batch]]
            ahead = ahead[batch:] + [pool.submit(classifier.preprocess, one) for one in islice(todo, batch)]
            classifier.engine.logits(np.stack(values))
            done += batch
    return done / took


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """A server's address and process id."""
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


def load(address: str, pictures: Path, users: int, seconds: float, arrivals: float = 0) -> dict[str, dict]:
    """Locust's account by status."""
    environment = {**os.environ, "VGG_PICTURES": str(pictures), "VGG_RATE": str(arrivals)}
    command = [sys.executable, "-m", "locust", "-f", HERE / "locustfile.py", "--headless", "--host", address, "--json",
               "--users", str(users), "--spawn-rate", "1000", "--run-time", f"{seconds:.0f}s", "--loglevel", "ERROR",
               ]  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 60)
    accounts = {one["name"]: one for one in json.loads(result.stdout)}
    if not accounts:
        raise SystemExit(f"no answer at all:\n{result.stderr}")
    return accounts


def rate(account: dict) -> float:
    """Answers a second, without the first seconds, in which the queue fills, and the last one, which was cut."""
    counts = {int(float(second)): count for second, count in account["num_reqs_per_sec"].items()}
    seconds = range(min(counts) + FILLING, max(counts))
    return sum(counts.get(second, 0) for second in seconds) / len(seconds)


def quantile(account: dict, share: float) -> float:
    """Milliseconds."""
    times = sorted((float(ms), count) for ms, count in account["response_times"].items())
    left = share * sum(count for _, count in times)
    for ms, count in times:
        left -= count
        if left <= 0:
            return ms
    return times[-1][0]


def told(accounts: dict[str, dict]) -> str:
    def one(status: str, account: dict) -> str:
        mean = account["total_response_time"] / account["num_requests"]
        low, high = quantile(account, 0.5), quantile(account, 0.99)
        p95 = quantile(account, 0.95)
        return f"{status}: {account['num_requests']}, ms mean {mean:.0f} p50 {low:.0f} p95 {p95:.0f} p99 {high:.0f}"

    return "; ".join(one(*entry) for entry in sorted(accounts.items()))


def memory(process: int) -> float:
    """MB that the process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--pictures", type=Path, required=True, help="a folder of JPEGs")
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--capacity", type=float, default=0.0, help="pictures a second")
    options.add_argument("--requests", type=int, default=20_000, help="of the part memory")
    given = options.parse_args()
    parts, capacity = given.parts.split(","), given.capacity
    classifier = vgg.load(given.model)
    with server("-m", given.model) as (address, process):
        if "throughput" in parts:
            shares, rates = [], []
            for _ in range(ROUNDS):
                alone = max(pipeline(classifier, given.pictures, batch, given.seconds / 4) for batch in BATCHES)
                accounts = load(address, given.pictures, 32, given.seconds / 2)
                rates.append(rate(accounts["200"]))
                shares.append(rates[-1] / alone)
                print(f"pipeline {alone:.2f}, 32 clients {rates[-1]:.2f} pictures/s; {told(accounts)}", flush=True)
            capacity = statistics.median(rates)
            print(f"the server does {statistics.median(shares):.1%} of the pipeline's work, median of {ROUNDS}", flush=True)
        if "poisson" in parts:
            accounts = load(address, given.pictures, 1, given.seconds, 0.8 * capacity)
            print(f"poisson, {0.8 * capacity:.2f}/s: {told(accounts)}", flush=True)
        if "overload" in parts:
            accounts = load(address, given.pictures, 32, given.seconds / 4)
            print(f"before it: {rate(accounts['200']):.2f} pictures/s", flush=True)
            accounts = load(address, given.pictures, 1, given.seconds / 2, 5 * capacity)
            print(f"overload, {5 * capacity:.2f}/s: {told(accounts)}", flush=True)
            time.sleep(2)
            accounts = load(address, given.pictures, 32, given.seconds / 4)
            print(f"after it: {rate(accounts['200']):.2f} pictures/s; {told(accounts)}", flush=True)
        if "memory" in parts:
            done, begun = 0, memory(process)
            while done < given.requests:
                accounts = load(address, given.pictures, 32, given.seconds / 6)
                done += sum(one["num_requests"] for one in accounts.values())
                print(f"memory: {done} requests, {memory(process):.0f} MB (at first {begun:.0f})", flush=True)


if __name__ == "__main__":
    main()
