"""Clients that send images to `vgg serve`, for benchmarks/serving.py. Responses are counted by status.

Environment:
    VGG_IMAGES: folder of images.
    VGG_RATE: requests per second and client, with Poisson arrivals; by default a client sends after each response.
"""

import os
import random
from pathlib import Path

import gevent
from locust import FastHttpUser, events, task

IMAGES = [path.read_bytes() for path in sorted(Path(os.environ["VGG_IMAGES"]).rglob("*.[jJ]*"))[:300]]
RATE = float(os.environ.get("VGG_RATE", 0))
TIMEOUT = 40  # seconds


class Sender(FastHttpUser):
    connection_timeout = network_timeout = TIMEOUT
    concurrency = 1000

    def wait_time(self) -> float:
        return random.expovariate(RATE) if RATE else 0

    @task
    def classify(self) -> None:
        if RATE:
            gevent.spawn(self._send)  # without waiting for the response
        else:
            self._send()

    def _send(self) -> None:
        with self.client.post("/v1/classify", data=random.choice(IMAGES), catch_response=True) as response:
            response.request_meta["name"] = str(response.status_code)
            if response.status_code in (200, 503):  # a full queue is not a failure
                response.success()


@events.quitting.add_listener
def _succeed(environment, **_):
    environment.process_exit_code = 0
