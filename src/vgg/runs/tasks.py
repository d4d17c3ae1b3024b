"""Tasks of bulk work: the rows of a table that the verbs `classify`, `features` and `evaluate` compute for each image."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..classifier import Classifier
from ..errors import utf8
from ..evaluation import Evaluation, predictions
from ..evaluation.run import check_models, score
from ..features import Descriptor, columns, extract
from ..sources import Dataset, Sample
from ..views import Views

if TYPE_CHECKING:
    import pyarrow


class Task(Protocol):
    """A verb with its options, which decide the rows."""

    labelled: bool  # whether the images' classes are needed
    doing: str  # name in progress reports

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        """A row for each image, or for each image and model, in their order; `error` is the reason of a missing result.

        The columns and their types don't depend on the images. `workers` threads read and decode; `batch_size` is the number
        of views in an engine's batch.
        """
        ...


@dataclass(frozen=True)
class Classify:
    """Rows of `image`, `predictions` (a list, best first, of `label`, `score`, `index` and `wnid`), `error`."""

    top: int | None = None  # see `vgg.Classifier.classify`
    threshold: float | None = None
    labelled = False
    doing = "Classifying"

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        import pyarrow as pa

        best = {"label": pa.string(), "score": pa.float32(), "index": pa.int32(), "wnid": pa.string()}
        schema = {"image": pa.string(), "predictions": pa.list_(pa.struct(best)), "error": pa.string()}
        rows = [
            {"image": utf8(one.image), "predictions": predicted, "error": one.error}
            for one in models[0].results(samples, self.top, self.threshold, workers=workers)
            for predicted in [None if one.error else list(map(asdict, one.predictions))]
        ]
        return pa.Table.from_pylist(rows, pa.schema(schema))


@dataclass(frozen=True)
class Describe:
    """Rows of `image`, a column for each layer (a list of float32 of fixed size), `error`."""

    descriptor: Descriptor = field(default_factory=Descriptor)
    labelled = False
    doing = "Extracting"

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        import pyarrow as pa

        [model] = models
        pairs = [(one.name, one) for one in samples]
        found = list(extract(model, pairs, self.descriptor, batch_size=batch_size, workers=workers))
        good = next((one for one in found if not one.error), None)
        if good is None:  # the vectors have the length of any image's
            side = model.network.preprocessing.crop
            [good] = extract(model, [("", np.zeros((side, side, 3), np.uint8))], self.descriptor)
        vectors = columns(found, {layer: value.shape for layer, value in good.values.items()})
        return pa.table(vectors | {"error": pa.array([one.error for one in found], pa.string())})


@dataclass(frozen=True)
class Score:
    """Rows of `vgg.evaluation.predictions`: `class`, `right`, `cross_entropy`, the best classes, `error`."""

    protocol: Views = field(default_factory=Views)
    fuse: bool = False  # also score the mean of the models' probabilities
    labelled = True
    doing = "Evaluating"

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        import pyarrow as pa

        check_models(models, self.protocol)
        run = Evaluation.start(models, Dataset("", samples), self.protocol, self.fuse)
        for _ in score(run, batch_size=batch_size, workers=workers):
            pass
        rows = [{**row, "image": utf8(row["image"])} for row in predictions(run)]
        kinds = {"image": pa.string(), "model": pa.string(), "label": pa.string(), "error": pa.string()}
        kinds |= {"class": pa.int32(), "right": pa.int8(), "cross_entropy": pa.float32()}
        return pa.Table.from_pylist(
            rows, pa.schema({name: kinds.get(name) or (pa.int32() if name[0] == "c" else pa.float32()) for name in rows[0]})
        )
