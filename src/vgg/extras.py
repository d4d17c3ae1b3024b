"""Optional dependencies: packages that only some features need, installed as extras of vgg."""

from importlib.util import find_spec

from .errors import Error


def require(feature: str, extra: str, *packages: str) -> None:
    """Raise an Error that names the extra to install when a package that a feature needs is missing.

    Args:
        feature: the subject of the message, such as `training`.
        extra: the extra of vgg that installs the packages, such as `train`.
        packages: names as they are imported. They are looked up and not imported, but the packages that contain them are.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise Error(f"{feature} requires {', '.join(missing)}; install with `pip install 'vgg[{extra}]'`")


def is_installed(package: str) -> bool:
    """Whether a package can be found. It is not imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that would contain it
        return False
