"""Limbeck: distil large language models into small ones."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("limbeck")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
