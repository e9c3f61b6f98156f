"""resolved.yaml: a recipe with every default filled in, as text."""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML


def dump_yaml(value: Any) -> str:
    """A JSON value as YAML 1.2, keys in the order given."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def load_yaml(text: str) -> Any:
    """The JSON value that `dump_yaml` wrote."""
    return YAML(typ="safe", pure=True).load(text)
