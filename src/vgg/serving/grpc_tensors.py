"""Requests and responses of the Open Inference Protocol over gRPC."""

from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as messages

from ..network import Network
from . import tensors
from .datatypes import BYTES, DATATYPES, FP32
from .memory import Reservation
from .refusals import Refusal
from .tensors import INPUT, Inference, InputTensor, Items, RequestedOutput, Tensor

CHUNK = 2**16  # numbers that are copied at once, so that other threads can run in between
SIDES = 4  # of a shape


def read_request(request: Any, network: Network, max_images: int, memory: Reservation) -> Inference:
    """The inference request in a message.

    Args:
        request: a ModelInferRequest.
        network: of the requested model.
        max_images: maximum size of the batch.
        memory: reserved for what is computed from the message.

    Raises:
        Refusal: the request is invalid.
    """
    if len(request.inputs) != 1:
        raise Refusal(f"the request must have one input, {INPUT!r}")
    given, architecture = request.inputs[0], network.architecture
    if len(given.shape) > SIDES:
        raise Refusal(f"`shape` must be [batch, 3, height, width], not {len(given.shape)} integers")
    tensor = tensors.check_input(given.name, given.datatype, list(given.shape), architecture, max_images)
    outputs = [tensors.requested_output(out.name, True, _number(out.parameters, "classification")) for out in request.outputs]
    architecture.check_values(out.name for out in outputs)
    timeout = _number(request.parameters, "timeout")
    if timeout < 0:
        raise Refusal("`timeout` must be an integer, in microseconds")
    outputs = outputs or [RequestedOutput(architecture.values[-1], True)]
    items = _items(given.contents, request.raw_input_contents, tensor, memory)
    return Inference(items, tuple(outputs), request.id, timeout / 1e6 or None)


def _items(contents: Any, raw: Any, tensor: InputTensor, memory: Reservation) -> Items:
    if len(raw) > 1:
        raise Refusal("`raw_input_contents` must be the bytes of one tensor")
    if raw:
        if tensor.datatype != FP32.name:
            memory.take(4 * len(raw[0]))  # a byte may become a float32
        return tensor.parse_raw(raw[0])
    if tensor.datatype == BYTES:
        values = contents.bytes_contents
    else:
        datatype = DATATYPES[tensor.datatype]
        if not datatype.contents:
            raise Refusal(f"{datatype.name} must be sent as `raw_input_contents`; its values have no field in `contents`")
        values = getattr(contents, datatype.contents)
    if len(values) != tensor.count:
        raise Refusal(f"shape {list(tensor.shape)} needs {tensor.count} values, not {len(values)}")
    if tensor.datatype == BYTES:
        return tensors.images_of(values)
    array = np.empty(tensor.count, datatype.dtype)
    try:
        for place in range(0, tensor.count, CHUNK):
            array[place : place + CHUNK] = values[place : place + CHUNK]
    except OverflowError:
        raise Refusal(f"`{datatype.contents}` has values beyond {datatype.name}") from None
    return tensor.parse_array(array)


def response(name: str, version: str, identity: str, outputs: list[Tensor]) -> Any:
    """A ModelInferResponse."""
    return messages.ModelInferResponse(
        model_name=name,
        model_version=version,
        id=identity,
        outputs=[
            messages.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in outputs
        ],
        raw_output_contents=[one.raw() for one in outputs],
    )


def _number(parameters: Any, name: str) -> int:
    return int(parameters[name].int64_param) if name in parameters else 0
