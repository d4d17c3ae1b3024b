"""Encoded images and other datatypes in the Open Inference Protocol, and what Triton's example clients do, with its client."""

import base64
import queue
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

import vgg
from conftest import EXAMPLES
from serving_helpers import serving

triton_http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
PHOTOS = [EXAMPLES / "chelsea.png", EXAMPLES / "rocket.jpg"]


@pytest.fixture(scope="module")
def running(models):
    with serving("-m", models["fc"], "-m", models["gap"], "--grpc-port", 0) as server:
        yield server


@pytest.fixture(scope="module")
def clients(running):
    over_http = triton_http.InferenceServerClient(running.address.removeprefix("http://"), concurrency=4, network_timeout=60)
    over_grpc = triton_grpc.InferenceServerClient(running.log[0]["grpc"])
    yield {"http": (triton_http, over_http), "grpc": (triton_grpc, over_grpc)}
    over_http.close()
    over_grpc.close()


@pytest.fixture(scope="module")
def logits(models) -> np.ndarray:
    network = vgg.Network.read(models["fc"])
    return vgg.engines.open(network).logits(np.stack([network.preprocessing(photo) for photo in PHOTOS]))


def infer(clients, protocol, values, datatype, model="fc"):
    triton, client = clients[protocol]
    tensor = triton.InferInput("data", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return client.infer(model, [tensor]).as_numpy("logits")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("shape", [[-1], [-1, 1]])
@pytest.mark.parametrize("encode", [bytes, base64.b64encode, lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")])
def test_bytes_are_encoded_images(clients, logits, protocol, shape, encode):
    values = np.array([encode(photo.read_bytes()) for photo in PHOTOS], object).reshape(shape)
    np.testing.assert_allclose(infer(clients, protocol, values, "BYTES"), logits, atol=1e-4)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_rows_of_uint8_are_encoded_images_with_zeros_at_their_end(clients, logits, protocol):
    contents = [np.frombuffer(photo.read_bytes(), np.uint8) for photo in PHOTOS]
    rows = np.stack([np.pad(one, (0, max(map(len, contents)) - len(one))) for one in contents])
    np.testing.assert_allclose(infer(clients, protocol, rows, "UINT8"), logits, atol=1e-4)


def test_bytes_in_json_are_base64(running, logits):
    texts = [base64.encodebytes(photo.read_bytes()).decode() for photo in PHOTOS]
    texts[1] = f"data:image/jpeg;base64,{texts[1]}"
    for shape, data in (([2], texts), ([2, 1], [[text] for text in texts])):
        body = {"inputs": [{"name": "data", "datatype": "BYTES", "shape": shape, "data": data}]}
        [output] = running.ask("POST", "/v2/models/fc/infer", json=body).json()["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), logits, atol=1e-4)


def test_bytes_contents_are_encoded_images(clients, logits):
    messages, stub = triton_grpc.service_pb2, clients["grpc"][1]._client_stub
    request = messages.ModelInferRequest(model_name="fc")
    tensor = request.inputs.add(name="data", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend(photo.read_bytes() for photo in PHOTOS)
    [raw] = stub.ModelInfer(request).raw_output_contents
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(2, -1), logits, atol=1e-4)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_broken_bytes_get_a_message(clients, protocol):
    triton, client = clients[protocol]
    for value, line in (
        ([b"notes", PHOTOS[0].read_bytes()], "image 0: not an image, or an unsupported format"),
        ([PHOTOS[0].read_bytes()[:5000]], "image: is damaged or truncated"),
    ):
        with pytest.raises(triton.InferenceServerException, match=line):
            infer(clients, protocol, np.array(value, object), "BYTES")
    tensor = triton.InferInput("data", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"ab", b"cd"], object))
    attribute = "_raw_data" if protocol == "http" else "_raw_content"
    setattr(tensor, attribute, b"\xff\xff\xff\x7f" + getattr(tensor, attribute)[4:])
    with pytest.raises(triton.InferenceServerException, match="a BYTES tensor must be 2 elements, each after its length"):
        client.infer("fc", [tensor])


NUMBERS = {
    "FP64": np.float64, "FP16": np.float16, "UINT8": np.uint8, "INT8": np.int8, "UINT16": np.uint16, "INT16": np.int16,
    "UINT32": np.uint32, "INT32": np.int32, "UINT64": np.uint64, "INT64": np.int64, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_other_numbers_become_float32(clients, models, protocol, datatype):
    values = np.random.default_rng(0).integers(0, 128, (1, 3, 32, 32)).astype(NUMBERS[datatype])
    expected = vgg.engines.open(models["gap"]).logits(values.astype(np.float32))
    found = infer(clients, protocol, values, datatype, "gap")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("datatype", ["FP64", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FP32"])
def test_numbers_may_be_contents_of_a_message_or_json(clients, running, models, datatype):
    values = np.random.default_rng(0).integers(0, 128, (1, 3, 64, 64))
    expected = vgg.engines.open(models["gap"]).logits(values.astype(np.float32))
    request = triton_grpc.service_pb2.ModelInferRequest(model_name="gap")
    tensor = request.inputs.add(name="data", datatype=datatype, shape=values.shape)
    fields = {"FP32": "fp32", "FP64": "fp64", "UINT64": "uint64", "INT64": "int64"}
    field = fields.get(datatype, "uint" if datatype.startswith("U") else "int")
    getattr(tensor.contents, f"{field}_contents").extend(values.ravel().tolist())
    [raw] = clients["grpc"][1]._client_stub.ModelInfer(request).raw_output_contents
    body = {"inputs": [{"name": "data", "datatype": datatype, "shape": values.shape, "data": values.tolist()}]}
    [output] = running.ask("POST", "/v2/models/gap/infer", json=body).json()["outputs"]
    for found in (np.frombuffer(raw, "<f4"), output["data"]):
        np.testing.assert_allclose([found], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_numbers_that_float32_lacks_are_refused(clients):
    for datatype, value in (("INT32", 2**24), ("INT64", -(2**24)), ("UINT64", 2**63)):
        with pytest.raises(triton_http.InferenceServerException, match="integers of 16,777,216 or more"):
            infer(clients, "http", np.full((1, 3, 32, 32), value, NUMBERS[datatype]), datatype, "gap")
    for value in (1e300, np.nan):
        with pytest.raises(triton_grpc.InferenceServerException, match="values that are not finite"):
            infer(clients, "grpc", np.full((1, 3, 32, 32), value), "FP64", "gap")
    with pytest.raises(triton_grpc.InferenceServerException, match="unsupported datatype 'BOOL'; the input is FP32, FP16"):
        infer(clients, "grpc", np.ones((1, 3, 32, 32), bool), "BOOL", "gap")


SCALINGS = {
    "NONE": lambda pixels: pixels,
    "VGG": lambda pixels: pixels - np.array((123, 117, 104), np.float32),
    "INCEPTION": lambda pixels: pixels / 127.5 - 1,
}


@pytest.mark.parametrize("mode", ["http", "http async", "grpc", "grpc async", "grpc stream"])
@pytest.mark.parametrize(("model", "scaling"), [("fc", "VGG"), ("gap", "INCEPTION"), ("gap", "NONE")])
def test_what_tritons_image_client_does(clients, models, mode, model, scaling):
    """Metadata and configuration give the size and the order of axes; requests of two images ask for three classes."""
    protocol, _, way = mode.partition(" ")
    triton, client = clients[protocol]
    metadata, config = client.get_model_metadata(model), client.get_model_config(model)
    if protocol == "grpc":
        metadata = {"shape": list(metadata.inputs[0].shape), "name": metadata.inputs[0].name}
        config = {"format": config.config.input[0].format, "max_batch_size": config.config.max_batch_size}
    else:
        metadata, config = metadata["inputs"][0], {**config["input"][0], **config}
    order = triton_grpc.model_config_pb2.ModelInput.FORMAT_NCHW
    assert config["format"] in (order, "FORMAT_NCHW")
    assert config["max_batch_size"] == 8
    _, channels, height, width = metadata["shape"]
    assert (channels, height, width) == (3, 224, 224)
    opened = [Image.open(photo).convert("RGB").resize((width, height), Image.BILINEAR) for photo in PHOTOS]
    batch = np.stack([SCALINGS[scaling](np.asarray(image, np.float32)).transpose(2, 0, 1) for image in opened])
    batch = batch.astype(np.float32)
    expected = np.argsort(-vgg.engines.open(models[model]).logits(batch), axis=1)[:, :3]
    tensor = triton.InferInput(metadata["name"], batch.shape, "FP32")
    tensor.set_data_from_numpy(batch)
    request = {"inputs": [tensor], "outputs": [triton.InferRequestedOutput("logits", class_count=3)], "model_version": ""}
    if not way:
        results = [client.infer(model, request_id="7", **request)]
    elif mode == "http async":
        results = [one.get_result() for one in [client.async_infer(model, request_id="7", **request) for _ in range(3)]]
    else:
        results = received(client, way, model, request)
    for result in results:
        texts = [[text.decode().split(":") for text in row] for row in result.as_numpy("logits")]
        assert [[int(index) for _, index, _ in row] for row in texts] == expected.tolist()
        assert {len(label) for row in texts for *_, label in row} == {3}


def received(client, way, model, request) -> list:
    """The results of three asynchronous requests over gRPC."""
    results = queue.Queue()
    call = partial(client.async_infer, callback=lambda result, error: results.put(error or result))
    if way == "stream":
        client.start_stream(lambda result, error: results.put(error or result))
        call = client.async_stream_infer
    for number in range(3):
        call(model, request_id=str(number), **request)
    found = [results.get(timeout=60) for _ in range(3)]
    if way == "stream":
        client.stop_stream()
        assert [one.get_response().id for one in found] == ["0", "1", "2"]
    return found


def test_a_refused_message_does_not_end_a_stream(clients, logits):
    client, results = clients["grpc"][1], queue.Queue()
    client.start_stream(lambda result, error: results.put(error or result))
    for model, contents in (("resnet", b""), ("fc", b"no image"), ("fc", PHOTOS[0].read_bytes())):
        tensor = triton_grpc.InferInput("data", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([contents], object))
        client.async_stream_infer(model, [tensor])
    assert "unknown model 'resnet'" in str(results.get(timeout=60))
    assert "image: not an image" in str(results.get(timeout=60))
    np.testing.assert_allclose(results.get(timeout=60).as_numpy("logits"), logits[:1], atol=1e-4)
    client.stop_stream()


def test_a_stream_without_messages_does_not_delay_the_shutdown(models):
    with serving("-m", models["gap"], "--grpc-port", 0, "--drain-seconds", 50) as server:
        client, errors = triton_grpc.InferenceServerClient(server.log[0]["grpc"]), queue.Queue()
        client.start_stream(lambda result, error: errors.put(error))
        tensor = triton_grpc.InferInput("data", [1, 3, 32, 32], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 3, 32, 32), np.float32))
        client.async_stream_infer("gap", [tensor])
        assert errors.get(timeout=60) is None
        assert server.stop() == 0
        assert "the server is shutting down" in str(errors.get(timeout=60))
        [entry] = server.logged(message="shut down")
        assert entry["seconds"] < 20
        client.close()


def test_an_engine_that_normalises_gets_pixels_of_images_and_tensors_of_clients(models, logits):
    """Also when both wait for the engine together: each of its batches has one dtype."""
    tensors = np.stack([vgg.Network.read(models["fc"]).preprocessing(photo) for photo in PHOTOS])
    content = np.array([photo.read_bytes() for photo in PHOTOS], object)
    with (
        serving("-m", models["fc"], "--engine", "torch", "--grpc-port", 0) as server,
        triton_grpc.InferenceServerClient(server.log[0]["grpc"]) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        kinds = [(content, "BYTES"), (tensors, "FP32")] * 4
        found = list(pool.map(lambda kind: infer({"grpc": (triton_grpc, client)}, "grpc", *kind), kinds))
    for one in found:
        np.testing.assert_allclose(one, logits, atol=1e-4)
