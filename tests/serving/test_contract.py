"""The server matches its description: schemathesis sends valid and invalid requests to every operation."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vgg
from conftest import ROOT
from vgg.serving import openapi, refusals
from vgg.serving.routes import ROUTES

pytest.importorskip("schemathesis", reason="needs schemathesis")
COMMAND = [sys.executable, "-m", "schemathesis.cli"]
# A schema can't express which bytes are an image, nor that a tensor has as many values as its shape needs: a request that is
# valid by the schema may still be refused.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "403", "404", "413", "415", "422", "501"]
[checks.negative_data_rejection]
expected-statuses = ["400", "403", "404", "405", "408", "411", "413", "415", "422", "501"]
[parameters]
"path.model" = "gap"
"path.version" = "2"
"path.MODEL_NAME" = "gap"
"path.MODEL_VERSION" = "2"
"""


def examine(schema: str, address: str, folder: Path, *options: str) -> None:
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = ["--config-file", folder / "schemathesis.toml", "run", schema, "--url", address, "--seed", "1", *options]
    result = subprocess.run([*COMMAND, *command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def test_the_server_matches_its_description(server, tmp_path):
    schema = f"{server.address}/openapi.json"
    examine(schema, server.address, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "2")


def test_the_server_matches_the_protocols_published_description(server, tmp_path):
    """The file is specification/protocol/open_inference_rest.yaml of github.com/kserve/open-inference-protocol at d49cc23."""
    text = Path(__file__).with_name("open_inference_rest.yaml").read_text()
    text = text.replace("/${", "/{")  # the file writes parameters like shell variables
    (tmp_path / "protocol.yaml").write_text(text)
    # It describes the statuses 200 and 400 only; 404 and 415 are ours.
    examine("protocol.yaml", server.address, tmp_path, "--exclude-checks", "status_code_conformance,unsupported_method")


def test_the_committed_description_is_the_generated_one():
    """`scripts/openapi.py` writes it."""
    spec = importlib.util.spec_from_file_location("openapi_script", ROOT / "scripts/openapi.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.FILE.read_bytes() == script.text().encode()


def test_every_route_is_described_and_nothing_else():
    ours = {(route.path, method) for route in ROUTES for method in route.methods - {"HEAD"}}
    pages = {("/", "GET"), ("/docs", "GET"), ("/page/{name}", "GET"), ("/v2/", "GET")}
    pages |= {("/", "OPTIONS"), ("/predictions/{model}", "OPTIONS")}
    paths = openapi.document(vgg.__version__)["paths"]
    described = {(path, method.upper()) for path, item in paths.items() for method in item if method in ("get", "post", "put")}
    assert ours - pages == described


def test_every_status_that_is_sent_is_described():
    statuses = {str(kind.status) for kind in vars(refusals).values() if isinstance(kind, type) and hasattr(kind, "status")}
    text = str(openapi.document(vgg.__version__))
    assert all(f"'{status}'" in text for status in statuses)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", openapi.document(vgg.__version__)["info"]["version"])


def test_every_promise_names_an_existing_test():
    text = (ROOT / "docs/server-behaviour.md").read_text()
    promises = re.split(r"\n- ", text)[1:]
    for promise in promises:
        named = re.findall(r"`(tests/serving/\w+\.py)::(\w+)`", promise)
        assert named, promise
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), test
