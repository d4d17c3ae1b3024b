"""The friendly protocol: `POST /v1/classify` with pictures, `GET /v1/models`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ImageError
from ..explanation import can_explain, cropped_area, grad_cam, outputs
from ..predictions import Prediction, rank, softmax
from .bodies import read_pictures
from .refusals import NotSupported, Refusal, Unreadable
from .repository import Model

TOP = 5
OPTIONS = ("top", "explain", "model", "version")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


async def classify(request: Request) -> Response:
    """What is in each of the pictures of the body."""
    app = request.app
    query = request.query_params
    request.scope["facts"]["served"] = asked = app.repository.get(query.get("model"), query.get("version"))
    asked.batcher.check_room()  # before the body is read: most requests that find no room need not send theirs
    body = await read_pictures(request)
    options = _options({**query, **body.options})
    with app.repository.get(options["model"], options["version"]).held() as model:
        explain = options["explain"]
        if explain and not can_explain(model.classifier):
            raise NotSupported(f"{model.name} has no heat maps, since its file quantizes activations")
        request.scope["facts"].update(served=model, pictures=len(body.pictures))
        looks = await app.look(model, body.pictures, outputs(model.classifier.network) if explain else ("logits",))
        tell = partial(_results, model, [picture.name for picture in body.pictures], looks, options)
        results = await app.threaded(tell) if explain else tell()
    seen_looks = [look for look in looks if not isinstance(look, ImageError)]
    if not seen_looks:
        raise Unreadable("; ".join(str(look) for look in looks[:3]))
    timing = {
        f"{stage}_ms": round(1000 * max(getattr(look, key) for look in seen_looks), 2)
        for stage, key in (("decode", "decoded"), ("queue", "queued"), ("inference", "inferred"))
    }
    return JSONResponse({"model": {"name": model.name, "version": model.version}, "results": results, "timing": timing})


async def models(request: Request) -> Response:
    """The models that are served, the default one first."""
    return JSONResponse({"models": [describe(model) for model in request.app.repository]})


def describe(model: Model) -> dict[str, Any]:
    """What people want to know about a model."""
    network = model.classifier.network
    architecture = network.architecture
    return {
        "name": model.name,
        "version": model.version,
        "architecture": architecture.name,
        "classes": architecture.classes,
        "parameters": architecture.parameter_count,
        "bytes": sum(array.nbytes for array in network.tensors().values()),
        "input_size": network.preprocessing.crop,
        "preprocessing": network.preprocessing.name,
        "explains": can_explain(model.classifier),
    }


def records(predictions: list[Prediction]) -> list[dict[str, Any]]:
    return [{"label": p.label, "score": round(p.score, 6), "index": p.index, "wnid": p.wnid} for p in predictions]


def _results(model: Model, names: Sequence[str], looks: Sequence[Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"image": name, **({"error": str(look)} if isinstance(look, ImageError) else _result(model, look, options))}
        for name, look in zip(names, looks, strict=True)
    ]


def _result(model: Model, look: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    network = model.classifier.network
    predictions = rank(softmax(look.values["logits"]), options["top"], network.labels)
    result: dict[str, Any] = {"predictions": records(predictions)}
    if options["explain"]:
        best = predictions[0].index
        [heat] = grad_cam(network, look.values, [best])
        result["explanation"] = {
            "index": best,
            "map": [[float(f"{value:.4g}") for value in row] for row in heat],
            "box": [round(share, 6) for share in cropped_area(network.preprocessing, look.width, look.height)],
        }
    return result


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request, whether they came as text or as JSON. Raises Refusal."""
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise Refusal(f"there is no option {', '.join(unknown)}; there are {', '.join(OPTIONS)}")
    top, explain = given.get("top", TOP), given.get("explain", False)
    if isinstance(top, str) and top.isascii() and top.isdigit() and len(top) < 10:
        top = int(top)
    if isinstance(explain, str):
        explain = BOOLEANS.get(explain)
    if type(top) is not int or top < 1:
        raise Refusal("top must be a whole number, 1 or more")
    if type(explain) is not bool:
        raise Refusal("explain must be true or false")
    names = {key: given.get(key, "") for key in ("model", "version")}
    if not all(isinstance(name, str) for name in names.values()):
        raise Refusal("model and version must be text")
    return {"top": top, "explain": explain, **names}


ROUTES = [Route("/v1/classify", classify, methods=["POST"]), Route("/v1/models", models, methods=["GET"])]
