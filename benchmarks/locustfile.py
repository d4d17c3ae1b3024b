"""Clients of `vgg serve` that send pictures; benchmarks/serving.py runs them. What was answered is counted by its status.

Environment: VGG_PICTURES, a folder of pictures; VGG_RATE, requests a second of a client, at times that are independent of
each other and of the answers (Poisson); without it, a client sends as soon as it has an answer.
"""

import os
import random
from pathlib import Path

import gevent
from locust import FastHttpUser, events, task

PICTURES = [path.read_bytes() for path in sorted(Path(os.environ["VGG_PICTURES"]).rglob("*.[jJ]*"))[:300]]
RATE = float(os.environ.get("VGG_RATE", 0))
PATIENCE = 40  # seconds


class Sender(FastHttpUser):
    connection_timeout = network_timeout = PATIENCE
    concurrency = 1000

    def wait_time(self) -> float:
        return random.expovariate(RATE) if RATE else 0

    @task
    def classify(self) -> None:
        if RATE:
            gevent.spawn(self._send)  # the next one doesn't wait for this one's answer
        else:
            self._send()

    def _send(self) -> None:
        with self.client.post("/v1/classify", data=random.choice(PICTURES), catch_response=True) as response:
            response.request_meta["name"] = str(response.status_code)
            if response.status_code in (200, 503):  # a full queue is an answer too
                response.success()


@events.quitting.add_listener
def _no_failure_of_ours(environment, **_):
    environment.process_exit_code = 0
