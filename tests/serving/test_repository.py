"""Models that are loaded, replaced and unloaded while the server runs; model files that change."""

import os
import shutil
import threading

import httpx
import numpy as np
import onnx
import pytest

import vgg
from conftest import EXAMPLES, FIXTURES, random_network
from serving_helpers import Server, serving
from vgg import Error
from vgg.serving import Settings
from vgg.serving.repository import open_model

PHOTO = EXAMPLES / "rocket.jpg"


def post(server: Server, path: str, **options) -> httpx.Response:
    return server.ask("POST", f"/v2/repository/{path}", **options)


def score(server: Server, model: str) -> float:
    response = server.ask("POST", "/predictions/" + model, content=PHOTO.read_bytes())
    assert response.status_code == 200, response.text
    return response.json()[0]["probability"]


def expected(path) -> float:
    return pytest.approx(vgg.load(path).classify(PHOTO)[0].score, abs=1e-4)


@pytest.fixture
def folder(models, tmp_path):
    """A repository: `plain.onnx`, `deep` with two versions, and a link to a file outside."""
    folder = tmp_path / "repository"
    (folder / "deep" / "1").mkdir(parents=True)
    (folder / "deep" / "10").mkdir()
    shutil.copy(models["gap"], folder / "plain.onnx")
    shutil.copy(models["gap"], folder / "deep" / "1" / "model.onnx")
    shutil.copy(models["other"], folder / "deep" / "10" / "model.onnx")
    shutil.copy(models["gap"], tmp_path / "outside.onnx")
    (folder / "link.onnx").symlink_to(tmp_path / "outside.onnx")
    (folder / "notes.txt").write_text("no model")
    return folder


def test_models_are_loaded_and_unloaded(models, folder):
    with serving("-m", models["fc"], "--repository", folder) as server:
        states = {one["name"]: one["state"] for one in post(server, "index").json()}
        assert states == {"fc": "READY", "plain": "UNAVAILABLE", "deep": "UNAVAILABLE"}  # what can be loaded
        assert "model_repository" in server.ask("GET", "/v2").json()["extensions"]
        for name, file in (("plain", folder / "plain.onnx"), ("deep", folder / "deep" / "10" / "model.onnx")):
            assert server.ask("GET", f"/v2/models/{name}/ready").status_code == 404
            assert post(server, f"models/{name}/load").json() == {}
            assert server.ask("GET", f"/v2/models/{name}/ready").status_code == 200
            assert score(server, name) == expected(file)
        assert server.ask("GET", "/v2/models/deep").json()["versions"] == ["10"]  # the newest, by number
        assert len(post(server, "index", json={"ready": True}).json()) == 3
        assert post(server, "models/plain/unload").json() == {}
        assert server.ask("GET", "/v2/models/plain/ready").status_code == 404
        assert post(server, "models/plain/unload").status_code == 404
        for name in ("link", "notes", "..", "%2e%2e", "..%2foutside", "outside", "deep%2f1", "*", "plain.onnx", "."):
            response = post(server, f"models/{name}/load")
            assert response.status_code == 404, (name, response.text)
        parameters = {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
        assert post(server, "models/plain/load", json=parameters).status_code == 400


def test_tritons_client_loads_and_unloads_only_models_of_the_folder(models, folder):
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
    with serving("-m", models["fc"], "--repository", folder) as server:
        client = triton.InferenceServerClient(server.address.removeprefix("http://"))
        client.load_model("plain")
        assert client.is_model_ready("plain")
        client.unload_model("plain")
        assert not client.is_model_ready("plain")
        with pytest.raises(triton.InferenceServerException, match="model fc is not from the repository's folder") as refused:
            client.unload_model("fc")
        assert refused.value.status() == "403"
        assert client.is_model_ready("fc")
        client.close()


def test_replacing_a_model_loses_no_request(models, folder):
    plain = folder / "plain.onnx"
    with serving("-m", models["fc"], "--repository", folder) as server:
        post(server, "models/plain/load")
        stop, responses = threading.Event(), []

        def load() -> None:
            with httpx.Client(timeout=60) as client:
                while not stop.is_set():
                    responses.append(client.post(f"{server.address}/predictions/plain", content=PHOTO.read_bytes()))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for source in ("other", "gap", "other"):
            shutil.copy(models[source], folder / "new")
            os.replace(folder / "new", plain)
            assert post(server, "models/plain/load").status_code == 200
            assert score(server, "plain") == expected(models[source])
        stop.set()
        for thread in threads:
            thread.join()
        assert {one.status_code for one in responses} == {200}
        found = {one.json()[0]["probability"] for one in responses}
        both = [vgg.load(models[name]).classify(PHOTO)[0].score for name in ("gap", "other")]
        assert all(min(abs(one - other) for other in both) < 1e-4 for one in found)


def test_a_failed_load_keeps_the_old_model(models, folder, tmp_path):
    plain = folder / "plain.onnx"
    with serving("-m", models["fc"], "--repository", folder) as server:
        post(server, "models/plain/load")
        good, before = plain.read_bytes(), score(server, "plain")
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 0x40
        for content, line in (
            (good[: len(good) // 2], "damaged"),
            (bytes(flipped), "damaged: the weights don't match the checksum"),
            (b"", "is empty"),
            (b"no model at all", "unsupported format"),
        ):
            plain.write_bytes(content)
            response = post(server, "models/plain/load")
            assert response.status_code == 400
            assert line in response.json()["error"]
            assert response.json()["error"].startswith("plain.onnx: ")  # without the server's folders
            assert score(server, "plain") == before
        plain.unlink()
        assert post(server, "models/plain/load").status_code == 404
        assert score(server, "plain") == before


def test_a_file_that_a_tool_has_changed_is_not_damaged(models, tmp_path):
    changed = onnx.load(models["fc"])
    weight = changed.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(0.5), weight.name))
    onnx.save(changed, tmp_path / "n.onnx")
    open_model(tmp_path / "n.onnx", Settings(), "n")


def test_every_error_of_a_load_has_the_files_own_name(tmp_path):
    shutil.copy(FIXTURES / "written-0.1/qdq.onnx", tmp_path / "q.onnx")
    with pytest.raises(Error) as caught:
        open_model(tmp_path / "q.onnx", Settings(precision="bf16"), "q")
    assert str(caught.value).startswith(f"{tmp_path}/q.onnx: a file with quantized activations can't be computed in bf16")


def test_a_full_disk_keeps_the_old_model(models, folder):
    # A limit on the size of files simulates a full disk, on which the private copy does not fit.
    large = random_network(input_size=224, width=1 / 4, head="gap")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); from vgg.cli import main; main()"
    )
    with serving("-m", models["gap"], "--repository", folder, run=code) as server:
        assert post(server, "models/plain/load").status_code == 200
        before = score(server, "plain")
        large.write(folder / "plain.onnx")
        response = post(server, "models/plain/load")
        assert response.status_code == 400
        assert "can't be copied to the temporary folder" in response.json()["error"]
        assert score(server, "plain") == before


def test_a_model_file_may_change_while_it_is_served(models, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(models["fc"], path)  # the weights of linear layers are mapped
    with serving("-m", path) as server:
        before = score(server, "model")
        os.truncate(path, 100)
        assert score(server, "model") == before
        path.write_bytes(os.urandom(600_000))
        assert score(server, "model") == before
        path.unlink()
        assert score(server, "model") == before
