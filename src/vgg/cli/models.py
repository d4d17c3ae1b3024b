"""vgg models"""

from .common import Format, FormatOption, print_records


def models(format: FormatOption = Format.table) -> None:
    """List the published models that can be read, and where they are.

    Example: `vgg models --format json`

    Accuracies are their publishers', on ImageNet's 50,000 validation images, centre crop. The network in this package has
    not been measured on those; docs/embedded-model.md says how good it is.
    """
    from ..architectures import Architecture
    from ..published import EMBEDDED, PUBLISHED

    embedded = (EMBEDDED, Architecture("vgg16", head="gap"), None, None, "torchvision", "in this package")
    published = [(k.name, k.architecture, k.top1, k.top5, k.preset, k.address) for k in PUBLISHED]
    print_records(
        [
            {
                "model": name,
                "parameters": architecture.parameter_count,
                "top-1 %": top1,
                "top-5 %": top5,
                "preprocessing": recipe,
                "address": address,
            }
            for name, architecture, top1, top5, recipe, address in (embedded, *published)
        ],
        format,
    )
