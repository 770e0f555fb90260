"""Configs as YAML files: read, overridden on the command line, and explained where they are wrong.

A config never executes code and imports nothing: it is plain YAML, read by a safe loader. An unknown key is an error that
names the nearest one.
"""

import difflib
import reprlib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from meddiff.baseline_config import BASELINE_KINDS
from meddiff.config import Config
from meddiff.degradation_config import DEGRADATION_KINDS
from meddiff.errors import ConfigError

LARGEST = 1 << 16  # bytes of a config
SHORT = reprlib.Repr()  # of values in messages
SHORT.maxstring = SHORT.maxother = 100


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file, with `a.b=c` overrides applied; ConfigError for whatever is wrong, all of it at once."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: has {path.stat().st_size} bytes; a config has at most {LARGEST}. Is it one?")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"{path}: cannot be read ({e}). Give the path of a YAML config, for instance configs/synthesis_2d_ct.yaml."
        ) from e
    tree = _plain(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: should be a mapping with the keys {', '.join(Config.model_fields)}; found {SHORT.repr(tree)}."
        )
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, str(path))


class _Loader(yaml.SafeLoader):
    """Plain values only, and no aliases: few lines of them stand for more values than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name); write their values out")
        return super().compose_node(parent, index)


def _plain(text: str, where: str) -> Any:
    """The values of some YAML; ConfigError where it is none, or holds what no config does."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: dates and numbers that are none
        raise ConfigError(f"{where}: is not valid YAML ({str(e)[:500]}).") from e
    finally:
        loader.dispose()


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """The config of a tree of plain values; `where` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{where}: {_explain(error)}" for error in e.errors())) from e


def _override(tree: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set {override!r}: expected a key and a value, for instance --set train.steps=2000.")
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent} holds a value, not a section.")
    tree[last] = _plain(value, f"--set {override!r}: the value")


def _explain(error: Any) -> str:
    """One line of a validation error: which key, what was found, what was expected, and the nearest known key."""
    # a discriminated union puts the chosen kind into the path; it is not a key of the file
    kinds = {
        *("window", "percentile", "lognormal", "uniform_t", "logit_normal"),
        *BASELINE_KINDS,
        *DEGRADATION_KINDS,
    }
    location = [part for part in error["loc"] if part not in kinds]
    key = ".".join(str(part) for part in location) or "the config"
    if error["type"] == "extra_forbidden":
        known = _keys_beside(error["loc"])
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return f"unknown key {key}; " + (
            f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}."
        )
    if error["type"] == "missing":
        return f"{key} is missing; add it."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}." if location else f"{message}."
    return f"{key}: {message[0].lower()}{message[1:]}; found {SHORT.repr(error['input'])}."


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    """The keys a section knows, for the location of an unknown key in it."""
    models: list[type[BaseModel]] = [Config]
    for part in location[:-1]:
        inner = [
            m
            for model in models
            if part in model.model_fields
            for m in _models(model.model_fields[str(part)].annotation)
        ]
        models = inner or [
            m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)
        ]
    return [key for model in models for key in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for arg in get_args(annotation) for m in _models(arg)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
