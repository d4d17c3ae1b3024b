"""What is done with each picture, as rows of a table: the verbs `classify`, `features` and `evaluate`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..classifier import Classifier
from ..evaluation import Evaluation, predictions
from ..evaluation.run import check_models, score
from ..features import Descriptor, columns, extract
from ..sources import Dataset, Sample
from ..views import Views

if TYPE_CHECKING:
    import pyarrow


class Task(Protocol):
    """A verb with its options, which decide the rows."""

    @property
    def labelled(self) -> bool:
        """Whether the pictures' classes are needed."""
        ...

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        """A row for each picture, or for each picture and model, in their order; `error` says why one has no result.

        The columns and their types are the same whatever the pictures are. `workers` threads read and decode; an
        engine gets `batch_size` views at once.
        """
        ...


@dataclass(frozen=True)
class Classify:
    """Rows of `image`, `predictions` (a list, best first, of `label`, `score`, `index` and `wnid`), `error`."""

    top: int = 5  # predictions a picture
    labelled = False

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        import pyarrow as pa

        best = {"label": pa.string(), "score": pa.float32(), "index": pa.int32(), "wnid": pa.string()}
        kinds = {"image": pa.string(), "predictions": pa.list_(pa.struct(best)), "error": pa.string()}
        found = models[0].results([(one.name, one) for one in samples], self.top, workers=workers)
        rows = [
            {"image": one.image, "predictions": None if one.error else list(map(asdict, one.predictions)), "error": one.error}
            for one in found
        ]
        return pa.Table.from_pylist(rows, pa.schema(kinds))


@dataclass(frozen=True)
class Describe:
    """Rows of `image`, a column for each layer (a list of float32 of fixed size), `error`."""

    descriptor: Descriptor = field(default_factory=Descriptor)
    labelled = False

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        import pyarrow as pa

        [model] = models
        pairs = [(one.name, one) for one in samples]
        found = list(extract(model, pairs, self.descriptor, batch_size=batch_size, workers=workers))
        good = next((one for one in found if not one.error), None)
        if good is None:  # the vectors' lengths are those of any picture's
            side = model.network.preprocessing.crop
            [good] = extract(model, [("", np.zeros((side, side, 3), np.uint8))], self.descriptor)
        made = columns(found, {layer: value.shape for layer, value in good.values.items()})
        return pa.table(made | {"error": pa.array([one.error for one in found], pa.string())})


@dataclass(frozen=True)
class Score:
    """Rows as `vgg.evaluation.predictions` gives them: `class`, `right`, `cross_entropy`, the best classes, `error`."""

    protocol: Views = field(default_factory=Views)
    fuse: bool = False  # also score the mean of the models' probabilities
    labelled = True

    def table(self, models: Sequence[Classifier], samples: Sequence[Sample], workers: int, batch_size: int) -> "pyarrow.Table":
        import pyarrow as pa

        check_models(models, self.protocol)
        run = Evaluation.start(models, Dataset("", samples), self.protocol, self.fuse)
        for _ in score(run, batch_size=batch_size, workers=workers):
            pass
        rows = list(predictions(run))
        kinds = {"image": pa.string(), "model": pa.string(), "label": pa.string(), "error": pa.string()}
        kinds |= {"class": pa.int32(), "right": pa.int8(), "cross_entropy": pa.float32()}
        return pa.Table.from_pylist(
            rows, pa.schema({name: kinds.get(name) or (pa.int32() if name[0] == "c" else pa.float32()) for name in rows[0]})
        )
