"""vgg models"""

from .common import Format, FormatOption, print_records


def models(format: FormatOption = Format.table) -> None:
    """List the published models that can be read, and where they are.

    Example: `vgg models --format json`

    Accuracies are their publishers', on ImageNet's 50,000 validation images, centre crop.
    """
    from ..architectures import Architecture
    from ..published import PUBLISHED

    print_records(
        [
            {
                "model": known.name,
                "parameters": Architecture(known.architecture).parameter_count,
                "top-1 %": known.top1,
                "top-5 %": known.top5,
                "preprocessing": known.preset,
                "address": known.address,
            }
            for known in PUBLISHED
        ],
        format,
    )
