"""Multi Model Server's ways, so that a client of it works unchanged.

Paths, answers and errors are those of its inference interface (awslabs/multi-model-server, docs/inference_api.md): a picture
in, raw or as a form, the five best classes out. `/invocations` is SageMaker's door to the same.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ImageError
from ..predictions import rank, softmax
from . import site
from .bodies import read_pictures
from .refusals import Refusal
from .repository import Model

TOP = 5
PATHS = ("/ping", "/predictions/", "/invocations", "/api-description", "/models/")


def speaks(path: str) -> bool:
    """Whether a path is one of Multi Model Server's."""
    return path.startswith(PATHS)


async def ping(request: Request) -> Response:
    healthy = not request.app.draining
    return JSONResponse({"status": "Healthy" if healthy else "Unhealthy"}, 200 if healthy else 503)


async def predict(request: Request) -> Response:
    """The five best classes of a picture; of each of several, when a form holds several."""
    app = request.app
    name = request.path_params.get("model") or request.query_params.get("model_name")
    version = request.path_params.get("version")
    request.scope["facts"]["served"] = asked = app.repository.get(name, version)
    asked.batcher.check_room()  # before the body is read
    body = await read_pictures(request)
    with app.repository.get(name or body.options.get("model_name"), version).held() as model:
        request.scope["facts"].update(served=model, pictures=len(body.pictures))
        looks = await app.look(model, body.pictures, ("logits",))
        answers = []
        for look in looks:
            if isinstance(look, ImageError):
                raise Refusal(str(look))
            answers.append(_classes(model, look.values["logits"]))
    return JSONResponse(answers[0] if len(answers) == 1 else answers)


def _classes(model: Model, logits: Any) -> list[dict[str, Any]]:
    """Best first; a class is called by its WordNet id and its name, as their models' `synset.txt` has it."""
    best = rank(softmax(logits), TOP, model.classifier.network.labels)
    return [{"class": f"{one.wnid} {one.label}" if one.wnid else one.label, "probability": one.score} for one in best]


ROUTES = [
    Route("/ping", ping, methods=["GET"]),
    Route("/predictions/{model}", predict, methods=["POST", "PUT"]),  # PUT is what `curl -T` sends
    Route("/predictions/{model}/{version}", predict, methods=["POST", "PUT"]),
    Route("/predictions/{model}", site.openapi, methods=["OPTIONS"]),
    Route("/models/{model}/invoke", predict, methods=["POST"]),
    Route("/invocations", predict, methods=["POST"]),
    Route("/api-description", site.openapi, methods=["GET"]),
    Route("/", site.openapi, methods=["OPTIONS"]),
]
