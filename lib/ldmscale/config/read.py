"""``config.yaml`` and its overlays, read as Snakemake reads them, for what runs outside the workflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ldmscale.config.check import check
from ldmscale.config.study import Study
from ldmscale.errors import UserError

DEFAULTS, SCHEMA = Path("config.yaml"), Path("schemas") / "config.schema.json"


def read_study(overlays: Iterable[str | Path], folder: str | Path = ".") -> Study:
    """The study of ``folder``'s config.yaml with ``overlays`` merged over it in order, as by ``--configfile``.

    Raises:
        UserError: a file is missing or no mapping in YAML, or the merged config is not a valid one.
    """
    defaults, schema = Path(folder) / DEFAULTS, Path(folder) / SCHEMA
    if not defaults.is_file() or not schema.is_file():
        raise UserError(f"{defaults} or {schema} is not there: run this in the folder of ldmscale's Snakefile")
    config = read_yaml(defaults)
    for overlay in overlays:
        config = merge(config, read_yaml(Path(overlay)))
    check(config, schema)
    return Study(config)


def merge(config: Any, overlay: Mapping) -> dict:
    """``config`` with the keys of ``overlay``, mappings merged key by key and everything else replaced whole."""
    merged = dict(config) if isinstance(config, Mapping) else {}
    for key, value in overlay.items():
        merged[key] = merge(merged.get(key), value) if isinstance(value, Mapping) else value
    return merged


class _Loader(yaml.SafeLoader):
    """As Snakemake's, but that a key which a mapping has twice is an error: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """The mapping of a YAML file. Raises UserError where it is missing, or no mapping, or has a key twice."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a config file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no UTF-8; a date or number that is none; too deep
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no keys at its top level: it must be a config, such as config.yaml")
    return value
