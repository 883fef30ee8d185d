"""The configuration: YAML in, checked pydantic models out, every error of a file at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from beam_prep import placeholders
from beam_prep.config_checks import contradictions
from beam_prep.errors import ConfigError
from beam_prep.layout import INPUTS_FOLDER, MANIFEST, NEXT, REJECTED_FOLDER, REPORT, RUN_FILE

MIN_CHARS_FOR_LONG = 32_000
"""Characters from which a document counts as long (`filter: {long: true}`, stage S3)."""

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_RESERVED = (INPUTS_FOLDER, REJECTED_FOLDER, MANIFEST, NEXT, REPORT, RUN_FILE)
_COMPARISONS = ("eq", "ne", "gt", "ge", "lt", "le", "in", "not_in")


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("needs a number; YAML reads yes, no, on and off as true and false")
    return value


_Int = Annotated[int, BeforeValidator(_no_switch)]
_Float = Annotated[float, BeforeValidator(_no_switch)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _folder_name(value: str) -> str:
    if not _NAME.match(value) or value.lower() in _RESERVED:
        reserved = ", ".join(_RESERVED)
        raise ValueError(f"{value!r} becomes a folder: use letters, digits, '.', '_' and '-', and none of {reserved}")
    return value


class FieldFilter(_Model):
    """One comparison on a raw field, for instance `{field: int_score, ge: 3}`; a row that fails it is filtered.

    A row that lacks the field (or holds null there) fails, unless `when_present` is set.
    """

    field: str = Field(min_length=1, description="Dotted path of the raw field.")
    eq: Any = Field(None, description="The field equals it.")
    ne: Any = Field(None, description="The field does not equal it.")
    gt: float | str | None = Field(None, description="The field is above it.")
    ge: float | str | None = Field(None, description="The field is at least it.")
    lt: float | str | None = Field(None, description="The field is below it.")
    le: float | str | None = Field(None, description="The field is at most it.")
    in_: list[Any] | None = Field(None, alias="in", description="The field is one of them.")
    not_in: list[Any] | None = Field(None, description="The field is none of them.")
    when_present: bool = Field(False, description="Keep rows that do not have the field.")

    @model_validator(mode="after")
    def _some_comparison(self) -> FieldFilter:
        if not self.comparisons():
            raise ValueError(f"no comparison; give one of {', '.join(_COMPARISONS)}")
        return self

    def comparisons(self) -> dict[str, Any]:
        """The comparisons that were given, by name (`in_` as `in`)."""
        given = {name.rstrip("_"): getattr(self, name) for name in self.model_fields_set}
        return {name: given[name] for name in _COMPARISONS if name in given}


def _listed(fields: Any) -> list[Any]:
    if not isinstance(fields, list):
        raise ValueError("`fields` is a list of comparisons, each a mapping like {field: score, ge: 3}")
    return fields


class Filter(_Model):
    """What is kept of a source. Each criterion is a reason of its own in the ledger."""

    min_chars: _Int | None = Field(None, ge=0, description="Least characters of the rendered text.")
    max_chars: _Int | None = Field(None, ge=0, description="Most characters of the rendered text.")
    min_tokens: _Int | None = Field(None, ge=0, description="Least tokens, the separator not counted.")
    max_tokens: _Int | None = Field(None, ge=0, description="Most tokens, the separator not counted.")
    long: bool = Field(False, description=f"At least {MIN_CHARS_FOR_LONG:,} characters.")
    fields: list[FieldFilter] = Field(default_factory=list, description="Comparisons on raw fields.")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """`{field: f, ge: 3}` stands for `{fields: [{field: f, ge: 3}]}`; a list joins several mappings."""
        if isinstance(value, list):
            merged: dict[str, Any] = {}
            for part in value:
                part = cls._shorthand(part)
                if not isinstance(part, dict):
                    return value
                for key, entry in part.items():
                    if key == "fields":
                        merged["fields"] = [*merged.get("fields", []), *_listed(entry)]
                    else:
                        merged[key] = entry
            return merged
        if isinstance(value, dict) and "field" in value:
            inner = {k: v for k, v in value.items() if k in (*_COMPARISONS, "field", "when_present")}
            outer = {k: v for k, v in value.items() if k not in inner}
            return {**outer, "fields": [inner, *_listed(outer.get("fields", []))]}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Filter:
        for unit in ("chars", "tokens"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} {low} is above max_{unit} {high}: nothing would be kept")
        return self

    def over(self, default: Filter) -> Filter:
        """This filter with a template's `default` criteria where it says nothing of its own.

        Raises:
          ConfigError: the two contradict each other.
        """
        own = {name: getattr(self, name) for name in self.model_fields_set if name != "fields"}
        named = {comparison.field for comparison in self.fields}
        fields = [c for c in default.fields if c.field not in named] + list(self.fields)
        base = {name: getattr(default, name) for name in default.model_fields_set if name != "fields"}
        try:
            return Filter(**{**base, **own}, fields=fields)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(
                f"filter: {reason}; one of them is the template's, which a null in the dataset's filter takes away"
            ) from None


class Dataset(_Model):
    """One source: where its records are, how they become text, how much of it is wanted."""

    name: str = Field(description="Name in the ledger, the manifest and the sidecars.")
    template: str | dict[str, Any] | None = Field(
        None, description="A catalogue entry, a file (./my.yaml), module:function, or the mapping itself."
    )
    text_field: str | None = Field(None, min_length=1, description="Shorthand: the field that holds the text.")
    input: list[str] = Field(description="A pattern or a list: local, gs://, s3://.", min_length=1)
    epochs: _Float | None = Field(None, ge=0, le=1e6, description="How often each document is seen.")
    weight: _Float | None = Field(None, gt=0, description="Share of the final tokens.")
    purpose: str | None = Field(None, description="For stages, in place of the template's purpose.")
    filter: Filter = Field(default_factory=Filter, description="Which documents are kept; adds to the template's own.")
    max_rejects: _Float | None = Field(None, ge=0, le=1, description="Overrides the run's max_rejects.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.match(value):
            raise ValueError("use letters, digits, '.', '_' and '-' (it becomes part of file names)")
        return value

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exclusive(self) -> Dataset:
        if (self.template is None) == (self.text_field is None):
            raise ValueError("give either template or text_field (one of them)")
        if self.epochs is not None and self.weight is not None:
            raise ValueError("epochs and weight are two ways to say one thing; give one of them")
        return self


class StageShare(_Model):
    """How much of a dataset a stage wants, in place of what the dataset says itself."""

    epochs: _Float | None = Field(None, ge=0, le=1e6, description="How often each document is seen.")
    weight: _Float | None = Field(None, gt=0, description="Share of the stage's tokens.")

    @model_validator(mode="after")
    def _exclusive(self) -> StageShare:
        if (self.epochs is None) == (self.weight is None):
            raise ValueError("give either weight or epochs (one of them)")
        return self


class Stage(_Model):
    """One training stage: an output of its own, from the documents that fit it."""

    name: str = Field(description="Becomes a folder.")
    context_length: _Int | None = Field(None, ge=2, le=2**31, description="Tokens a sequence; absent: the run's.")
    purposes: list[str] | None = Field(None, min_length=1, description="Purposes that take part; absent: all.")
    datasets: dict[str, StageShare] | list[str] | None = Field(
        None, description="Datasets that take part, by name; as a mapping with a weight or epochs for this stage."
    )
    min_chars: _Int | None = Field(None, ge=0, description="Least characters of a document.")
    min_tokens: _Int | None = Field(None, ge=0, description="Least tokens of a document, the separator not counted.")
    total_tokens: _Float | None = Field(None, gt=0, description="Budget; absent: the run's.")
    max_epochs: _Float | None = Field(None, gt=0, description="Absent: the run's.")
    packing: Literal["concat", "best_fit"] | None = Field(None, description="Absent: the run's.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        return _folder_name(value)


class Config(_Model):
    """A whole run."""

    tokenizer: str = Field("qwen3", min_length=1, description="Bundled name, Hub id, local folder or gs:// folder.")
    tokenizer_backend: Literal["auto", "fastokens", "huggingface"] = Field(
        "auto", description="auto: fastokens where it is installed, else huggingface."
    )
    context_length: _Int = Field(32_768, ge=2, le=2**31, description="Tokens a sequence.")
    seed: _Int = Field(0, ge=0, lt=2**63, description="Of the order, and of random choices in templates.")
    output: str = Field(
        "out", min_length=1, description="Folder to write; local or gs://. May hold {date} (UTC) and {job_name}."
    )
    datasets: Annotated[list[Dataset], Field(min_length=1, description="The sources.")]
    splits: dict[str, Annotated[_Float, Field(gt=0, le=1)]] | None = Field(
        None, min_length=1, description="Named parts of the documents by their content; fractions that sum to 1."
    )
    packing: Literal["concat", "best_fit"] = Field(
        "concat", description="concat: one stream, cut at sequences' ends; best_fit: no document that fits is cut."
    )
    tail: Literal["pad", "drop"] = Field("pad", description="The one incomplete sequence of an output: pad it, or not.")
    dedup: Literal["exact", "none"] = Field("exact", description="exact: of equal texts one document is kept.")
    max_rejects: _Float = Field(0.01, ge=0, le=1, description="Share of a source's records; above it the run fails.")
    total_tokens: _Float | None = Field(None, gt=0, description="Budget, over all splits; of each stage its own.")
    max_epochs: _Float = Field(1.0, gt=0, le=1e6, description="How often a weighted dataset is seen at most.")
    stages: Literal["qwen3"] | Annotated[list[Stage], Field(min_length=1)] | None = Field(
        None, description="Outputs of their own, from one reading of the data; absent: one output."
    )
    views: list[Annotated[_Int, Field(ge=1)]] = Field(
        default_factory=list, description="Shorter context lengths that get an index of their own over the same shards."
    )

    @field_validator("output")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        return placeholders.check(value)

    @field_validator("splits")
    @classmethod
    def _plain_splits(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name in value or {}:
            _folder_name(name)
        return value

    @field_validator("datasets")
    @classmethod
    def _distinct(cls, value: list[Dataset]) -> list[Dataset]:
        names = [dataset.name for dataset in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two datasets are called {twice[0]!r}; give each a name of its own")
        return value


def load_config(path: str, overrides: dict[str, Any] | None = None) -> Config:
    """Reads and checks a configuration file (local or any file system that Beam knows).

    Args:
      overrides: top-level keys → values that take the file's place, as text or as what they are; None is not given.

    Raises:
      ConfigError: names the file, and for every error its line and key, or its flag, and what to do.
    """
    text = _read_text(path)
    return parse_config(text, path, overrides)


def parse_config(text: str, name: str = "<configuration>", overrides: dict[str, Any] | None = None) -> Config:
    """Checks the text of a configuration; see `load_config`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        duplicates = list(_duplicate_keys(node, set())) if node is not None else []
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: a configuration is a mapping with at least `datasets:`; see README.md")
    problems = [f"line {line}: `{key}` is given twice; keep one" for key, line in duplicates]
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        config = Config.model_validate({**raw, **flags})
    except ValidationError as error:
        problems += [_explain(item, node, flags) for item in error.errors()]
    else:
        for location, problem in contradictions(config):
            problems.append(f"{_place(location, node, flags)}`{_key(location, flags)}`: {problem}")
    if not problems:
        return config
    plural = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    raise ConfigError("\n".join([f"{name}: {plural}", *(f"  {p}" for p in problems)]))


def _read_text(path: str) -> str:
    try:
        if "://" not in path:
            return Path(path).read_text(encoding="utf-8")
        from beam_prep.storage import read_bytes

        return read_bytes(path).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `beam-prep demo` runs without one") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the YAML file itself") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _duplicate_keys(node: yaml.Node, known: set[int]):
    """Yields (key, line) of every key that a mapping holds twice; YAML would silently keep the last one.

    `known`: nodes that were looked at before, since an alias repeats (or holds) one.
    """
    if id(node) in known:
        return
    known.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _duplicate_keys(value, known)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicate_keys(value, known)


def _line(node: yaml.Node | None, location: tuple) -> int | None:
    """Line of the deepest node that `location` reaches."""
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _place(location: tuple, node: yaml.Node | None, flags: Container[str]) -> str:
    """Where an error is: its line, or nothing if no line of the file is to blame."""
    line = None if location and location[0] in flags else _line(node, location)
    return f"line {line}: " if line else ""


def _key(location: tuple, flags: Container[str]) -> str:
    """The key of an error, as it was given: in the file, or as a flag."""
    return f"--{location[0]}" if location and location[0] in flags else _dotted(location)


def _explain(error: dict[str, Any], node: yaml.Node | None, flags: Container[str]) -> str:
    """One line for one pydantic error: place, key or flag, what is wrong, what to do."""
    *outer, last = error["loc"] or ("",)
    unknown_key = error["type"] == "extra_forbidden"  # which may well be called `list`
    location = tuple(p for p in outer if not _is_branch(p)) + ((last,) if unknown_key or not _is_branch(last) else ())
    key, place = _key(location, flags), _place(location, node, flags)
    if unknown_key:
        unknown, known = str(location[-1]), _known_keys(location[:-1])
        near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{place}unknown key `{key}`; {hint}"
    if error["type"] == "missing":
        return f"{place}`{key}` is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"valid dictionary or instance of \w+", "mapping (`key: value` pairs)", message)
    given = error.get("input")
    shown = f" (given: {str(given)[:60]!r})" if isinstance(given, (str, int, float, bool)) else ""
    message = message[:1].lower() + message[1:]
    return f"{place}`{key}`: {message}{shown}" if key else f"{place}{message}{shown}"


def _is_branch(part: Any) -> bool:
    """pydantic adds the name of a union's branch to a location; users did not write that."""
    return isinstance(part, str) and ("[" in part or part in ("str", "Stage", "dict", "list"))


def _dotted(location: tuple) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _known_keys(location: tuple) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        nested = {"datasets": Dataset, "filter": Filter, "fields": FieldFilter, "stages": Stage}.get(str(part))
        model = nested or model
    models = [Filter, FieldFilter] if model is Filter else [model]  # a filter may be a comparison
    return [field.alias or name for m in models for name, field in m.model_fields.items()]
