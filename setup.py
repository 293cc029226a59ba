"""Name the packages that the tree holds, so that no new one is left out of the wheel.

All other metadata stands in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup

FOLDERS = {
    "outrider": "outrider",
    "outrider.cloud": "cloud",
    "outrider.edge": "edge",
    "outrider.partitioner": "partitioner",
    "outrider.privacy": "privacy",
    "outrider.protocol": "protocol",
}


def packages() -> list[str]:
    """Every folder with an `__init__.py`, by its import name. Links are not followed."""
    names = set()
    for name, folder in FOLDERS.items():
        root = Path(__file__).parent / folder
        for init in root.rglob("__init__.py"):
            inner = init.parent.relative_to(root).parts
            if not any((root / Path(*inner[: i + 1])).is_symlink() for i in range(len(inner))):
                names.add(".".join((name, *inner)))
    return sorted(names)


setup(packages=packages())
