"""vgg models"""

from typing import TYPE_CHECKING, Any

from . import common

if TYPE_CHECKING:
    from ..zoo import Published

FACTS = ("bytes", "sha256", "sha1", "md5", "data_bytes", "data_sha256", "onnx", "opset", "top1", "top5")  # of Published


def models(format: common.FormatOption = common.Format.table) -> None:
    """List the network in the package and the published models that can be downloaded.

    Example: `vgg models --format json`

    Sizes are in MB (1,000,000 bytes), without and with the sample data of the ONNX Model Zoo. Accuracies are those of the
    publishers, on the 50,000 validation images of ImageNet, centre crop. The last column marks downloaded models. JSON and CSV
    add hashes, licences, preprocessing, addresses and paths.
    """
    from .. import zoo

    size = zoo.EMBEDDED_FILE.stat().st_size if zoo.EMBEDDED_FILE.exists() else None
    embedded = {"model": zoo.EMBEDDED, "bytes": size, "address": "in this package", "path": str(zoo.EMBEDDED_FILE)}
    records = [_record(known) for known in zoo.list()]
    records.insert(0, {**dict.fromkeys(records[0]), "architecture": "vgg16", "preprocessing": "torchvision", **embedded})
    if format is common.Format.table:
        records = [_row(record) for record in records]
    common.print_records(records, format)


def _record(known: "Published") -> dict[str, Any]:
    from .. import zoo

    path = zoo.cached(known)
    return {
        "model": known.name,
        "architecture": known.architecture.name,
        "parameters": known.architecture.parameter_count,
        **{fact: getattr(known, fact) for fact in FACTS},
        "preprocessing": known.preset,
        "licence": known.licence,
        "address": known.address,
        "path": str(path) if path else None,
    }


def _row(record: dict[str, Any]) -> dict[str, Any]:
    megabytes = {name: value and value / 1e6 for name, value in record.items() if name.endswith("bytes")}
    return {
        "model": record["model"],
        "MB": megabytes["bytes"],
        "with data": megabytes["data_bytes"],
        "ONNX": record["onnx"],
        "opset": record["opset"],
        "top-1 %": record["top1"],
        "top-5 %": record["top5"],
        "local": "yes" if record["path"] else None,
    }
