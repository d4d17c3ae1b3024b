"""Kubernetes manifests in the documentation and the examples follow the published schemas, and fit the server."""

import re
from typing import Any

import pytest

from conftest import EXAMPLES, ROOT

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
schemas = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")

PAGE = (ROOT / "docs/serving.md").read_text()
FILES = {path.name: path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))}
TEXTS = {
    **FILES,
    **{f"serving.md {place}": block for place, block in enumerate(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))},
}
OTHERS = {"ServingRuntime", "InferenceService"}  # KServe's


def manifests(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def test_there_are_manifests():
    kinds = {one["kind"] for text in TEXTS.values() for one in manifests(text)}
    assert kinds == OTHERS | {"Deployment", "Service", "HorizontalPodAutoscaler", "ConfigMap"}


@pytest.mark.parametrize("name", TEXTS)
def test_they_follow_the_schemas_of_kubernetes(name):
    for one in manifests(TEXTS[name]):
        if one["kind"] not in OTHERS:
            schemas.validate(one, schemas.latest_version(), strict=True)  # unknown fields are errors


def test_an_unknown_field_is_found():
    (deployment, _) = manifests(FILES["kubernetes-grpc.yaml"])
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["grpc"]["host"] = "localhost"
    with pytest.raises(schemas.ValidationError):
        schemas.validate(deployment, schemas.latest_version(), strict=True)


@pytest.mark.parametrize("name", TEXTS)
def test_options_and_ports_are_the_servers(name):
    options = set(re.findall(r"\| `(-[^`]*)`", (ROOT / "docs/command-line.md").read_text()))
    for one in manifests(TEXTS[name]):
        if one["kind"] == "Deployment":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
            assert all(any(option in names for names in options) for option in given), (given, options)
            ports = {int(given.get("--port", 8080)), *(int(given[key]) for key in ("--grpc-port",) if key in given)}
            assert {port["containerPort"] for port in container["ports"]} == ports
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                target = container[probe].get("grpc") or container[probe]["httpGet"]
                assert target["port"] == (int(given["--grpc-port"]) if "grpc" in container[probe] else 8080)


def test_the_autoscaler_follows_the_servers_gauge(server):
    autoscaler, adapter = manifests(FILES["kubernetes-autoscaling.yaml"])
    (rule,) = yaml.safe_load(adapter["data"]["config.yaml"])["rules"]
    series = rule["seriesQuery"].partition("{")[0]
    assert f"# TYPE {series} gauge\n" in server.ask("GET", "/metrics").text
    (metric,) = autoscaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    deployments = [one for text in TEXTS.values() for one in manifests(text) if one["kind"] == "Deployment"]
    assert autoscaler["spec"]["scaleTargetRef"]["name"] in {one["metadata"]["name"] for one in deployments}
