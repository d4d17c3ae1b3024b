"""vgg models"""

from typing import TYPE_CHECKING, Any

from .common import Format, FormatOption, print_records

if TYPE_CHECKING:
    from ..zoo import Published


def models(format: FormatOption = Format.table) -> None:
    """List the published models that can be pulled, and which of them are on this machine.

    Example: `vgg models --format json`

    Sizes are in MB of 1,000,000 bytes, the second with the zoo's sample data. Accuracies are the publishers', on ImageNet's
    50,000 validation images, centre crop. JSON and CSV say more: hashes, licences, preprocessing, addresses, and where the
    files lie here.
    """
    from .. import zoo

    size = zoo.EMBEDDED_FILE.stat().st_size if zoo.EMBEDDED_FILE.exists() else None
    embedded = {"model": zoo.EMBEDDED, "bytes": size, "address": "in this package", "path": str(zoo.EMBEDDED_FILE)}
    records = [_record(known) for known in zoo.list()]
    records.insert(0, {**dict.fromkeys(records[0]), "architecture": "vgg16", "preprocessing": "torchvision", **embedded})
    if format is not Format.table:
        print_records(records, format)
        return
    print_records(
        [
            {
                "model": one["model"],
                "MB": _megabytes(one["bytes"]),
                "with data": _megabytes(one["data_bytes"]),
                "ONNX": one["onnx"],
                "opset": one["opset"],
                "top-1 %": one["top1"],
                "top-5 %": one["top5"],
                "here": "yes" if one["path"] else None,
            }
            for one in records
        ],
        format,
    )


def _record(known: "Published") -> dict[str, Any]:
    from .. import zoo

    path = zoo.cached(known)
    return {
        "model": known.name,
        "architecture": known.architecture.name,
        "parameters": known.architecture.parameter_count,
        "bytes": known.bytes,
        "sha256": known.sha256,
        "md5": known.md5,
        "data_bytes": known.data_bytes,
        "data_sha256": known.data_sha256,
        "onnx": known.onnx,
        "opset": known.opset,
        "top1": known.top1,
        "top5": known.top5,
        "preprocessing": known.preset,
        "licence": known.licence,
        "address": known.address,
        "path": str(path) if path else None,
    }


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6
