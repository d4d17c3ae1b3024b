"""The interface of Multi Model Server: the calls of its documentation, and their responses."""

import pytest

import vgg
from conftest import EXAMPLES, random_network
from serving_helpers import serving

PHOTO = EXAMPLES / "chelsea.png"
PATHS = ["/predictions/fc", "/predictions/fc/1", "/models/fc/invoke", "/invocations?model_name=fc"]


def test_ping(server):
    assert server.ask("GET", "/ping").json() == {"status": "Healthy"}


@pytest.mark.parametrize("path", PATHS)
def test_an_image_gets_its_five_best_classes(server, models, path):
    expected = vgg.load(models["fc"]).classify(PHOTO)
    data = PHOTO.read_bytes()
    kind = {"content-type": "application/x-image"}
    for form in ({"content": data}, {"files": {"data": data}}, {"content": data, "headers": kind}):
        found = server.ask("POST", path, **form).json()
        assert [set(one) for one in found] == [{"class", "probability"}] * 5
        assert [one["class"] for one in found] == [one.label for one in expected]
        assert found[0]["probability"] == pytest.approx(expected[0].score, abs=1e-4)


def test_put_equals_post(server):
    put, posted = (server.ask(method, "/predictions/fc", content=PHOTO.read_bytes()) for method in ("PUT", "POST"))
    assert put.json() == posted.json()


def test_invocations_use_the_default_model_or_the_forms(server):
    data = PHOTO.read_bytes()
    default = server.ask("POST", "/invocations", content=data).json()
    assert default == server.ask("POST", "/predictions/gap/2", content=data).json()
    named = server.ask("POST", "/invocations", files={"data": data}, data={"model_name": "fc"}).json()
    assert named == server.ask("POST", "/predictions/fc", content=data).json()


def test_class_names_start_with_wordnet_ids(tmp_path):
    random_network(labels=vgg.labels.imagenet(), classes=1000, input_size=32, head="gap").write(tmp_path / "n.onnx")
    with serving("-m", tmp_path / "n.onnx") as server:
        found = server.ask("POST", "/predictions/n", content=PHOTO.read_bytes()).json()
    assert all(one["class"].startswith("n0") and one["class"][9] == " " for one in found)


def test_errors_have_a_code_a_type_and_a_message(server):
    response = server.ask("POST", "/predictions/resnet", content=b"x")
    assert response.status_code == 404
    assert response.json() == {"code": 404, "type": "NotFound", "message": "unknown model 'resnet'; choose from gap, fc"}
    response = server.ask("POST", "/predictions/fc", content=b"x")
    assert response.status_code == 400
    assert response.json()["message"] == "image: not an image, or an unsupported format"


@pytest.mark.parametrize(("method", "path"), [("GET", "/api-description"), ("OPTIONS", "/"), ("OPTIONS", "/predictions/fc")])
def test_the_description_is_openapi(server, method, path):
    assert server.ask(method, path).json()["openapi"].startswith("3.")
