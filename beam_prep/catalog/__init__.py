"""The datasets that ship with the project, one YAML file each, and how a template's reference is resolved."""

from __future__ import annotations

import difflib
import functools
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from beam_prep.config import Dataset
from beam_prep.errors import ConfigError
from beam_prep.templates import Template


@functools.cache
def names() -> tuple[str, ...]:
    """The names of the catalogue's entries, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


@functools.cache
def entry(name: str) -> Template:
    """One entry of the catalogue.

    Raises:
      ConfigError: there is none of that name; says which comes nearest.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`beam-prep datasets` lists them"
        raise ConfigError(f"template {name!r} is not in the catalogue; {hint}")
    return parse_template(yaml.safe_load(source_text(name)), name)


def source_text(name: str) -> str:
    """The YAML of one of `names()`, as it is written."""
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def parse_template(value: Any, name: str) -> Template:
    """A template from its mapping.

    Raises:
      ConfigError: names every key that is wrong.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"template {name!r}: a template is a mapping with text, chat or function")
    try:
        return Template.model_validate({"name": name, **value})
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'template'}: {_plain(e)}" for e in error.errors()]
        raise ConfigError("\n".join([f"template {name!r}:", *lines])) from None


def _plain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), list(Template.model_fields), n=1)
        return "unknown key" + (f"; did you mean `{near[0]}`?" if near else "")
    return error["msg"].removeprefix("Value error, ")


def resolve(dataset: Dataset, base: Path | None = None) -> Template:
    """The template that a dataset of the configuration asks for.

    Args:
      base: folder that relative template files are looked for in (the configuration's own).

    Raises:
      ConfigError: it does not exist or is not valid.
    """
    if dataset.text_field is not None:
        field = dataset.text_field
        return Template(name=dataset.name, required={field: "string"}, function=None, text=_field_template(field))
    reference = dataset.template
    if isinstance(reference, dict):
        return parse_template(reference, dataset.name)
    assert reference is not None
    if reference.endswith((".yaml", ".yml")):
        path = Path(reference)
        path = path if path.is_absolute() or base is None else base / path
        try:
            return parse_template(yaml.safe_load(path.read_text(encoding="utf-8")), dataset.name)
        except FileNotFoundError:
            raise ConfigError(f"dataset {dataset.name!r}: template file {path} does not exist") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"dataset {dataset.name!r}: template file {path} is not valid YAML: {error}") from None
    if ":" in reference:
        return Template(name=dataset.name, function=reference)
    return entry(reference)


def _field_template(field: str) -> str:
    """A template that is one field, whatever its path is called."""
    first, *rest = field.split(".")
    if first.isidentifier():
        return "{{ " + first + "".join(f"[{part!r}]" for part in rest) + " }}"
    raise ConfigError(f"text_field {field!r}: not a field name that a template can use; write a template instead")
