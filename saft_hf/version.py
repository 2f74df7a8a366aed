"""The version of saft_hf, and those of the packages that decide what it computes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("saft-hf")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0.0.0+checkout"

_PACKAGES = ("torch", "transformers", "trl", "datasets")


def versions() -> dict[str, str]:
    """Package -> installed version, saft_hf's own first."""
    return {"saft_hf": __version__, **{name: version(name) for name in _PACKAGES}}
