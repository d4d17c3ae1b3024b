"""vgg pull"""

from typing import Annotated

import typer


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Published models; `vgg models` lists them.")],
) -> None:
    """Download published models, verify them, and print where they are.

    Example: `vgg pull vgg16 torchvision/vgg11`

    A download that was cut goes on where it ended. `VGG_HOME` is the folder where models are kept, `VGG_MIRROR` a folder or
    an address to take them from.
    """
    from .. import zoo

    for name in names:
        typer.echo(zoo.pull(name))
