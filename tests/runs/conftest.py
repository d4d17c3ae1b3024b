import os
from pathlib import Path

import pytest

from miniature import jpeg
from runs_helpers import BROKEN, COUNT, LABELS


@pytest.fixture
def photos(tmp_path) -> Path:
    """Class folders with small images, one of them broken."""
    for index in range(COUNT):
        path = tmp_path / "photos" / LABELS.names[index % 7] / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing" if index == BROKEN else jpeg(index))
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of a head that computes nothing and two machines of a processor each, all of them on loopback."""
    import ray
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # which would have it listen on the machine's own address
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    health = {"initial_delay_ms": 0, "period_ms": 300, "failure_threshold": 3, "timeout_ms": 1000}
    common = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
    settings = {f"health_check_{name}": value for name, value in health.items()} | {
        "worker_niceness": 0,
        "actor_graceful_shutdown_timeout_ms": 1000,
    }
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": settings, **common}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1, **common)
    ray.init(address=made.address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
