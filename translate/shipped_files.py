"""Where the files are that come with the package: inside it when installed, at the top of a checkout otherwise."""

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """The folder `configs` or `datasets`: translate/shipped/<name> in a wheel, <repository>/<name> in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / name
    return installed if installed.is_dir() else package.parent / name
