"""From a raw record to the text of a document: declarative templates, compiled to plain functions.

A template's own control tokens (`<|im_start|>` …) and the same characters inside a field are different
things: the first become token ids, the second ordinary text. So a rendered document is either one `str`
(no control token in it) or `Segments`, and data can never be taken for control.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from jinja2 import TemplateError, nodes
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, model_validator

from beam_prep.config import Filter
from beam_prep.documents import (
    IM_END,
    IM_START,
    Document,
    Draw,
    Filtered,
    Message,
    Reject,
    Segments,
    chat_segments,
)
from beam_prep.errors import ConfigError

# Stand-ins for control tokens while Jinja renders: lone surrogates, which no valid record can hold.
_STAND_IN = 0xDC00
_STAND_INS = re.compile("([\udc00-\udfff])")

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: tuple[Role, ...] = get_args(Role)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "list": list,
    "strings": list,
    "object": dict,
    "number": (int, float),
    "boolean": bool,
    "any": object,
}


class Context(NamedTuple):
    """What a compiled template may use beside the record."""

    seed: int
    skipped_turns: dict[str, int]
    """Counts of turns left out, by reason; shared with the caller."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Chat(_Form):
    """A conversation: which field holds the messages, and how their roles are called there."""

    messages: str = Field(description="Dotted path of the list of turns.")
    role: str = Field("role", description="Key of a turn's role.")
    content: str = Field("content", description="Key of a turn's text.")
    roles: dict[str, Role] = Field(
        default_factory=lambda: {role: role for role in _ROLES},
        description="Raw role → system, user, assistant or tool. Turns of other roles are skipped and counted.",
    )
    pairs: dict[Role, str] | None = Field(
        None, description="For turns that hold several messages: role → key, in the order they are said."
    )
    system: str | None = Field(None, description="Jinja2 template of the system message; left out where it is empty.")
    after: str | None = Field(
        None, description="Jinja2 template that follows the chat after a blank line, if not empty."
    )


class Hub(_Form):
    """Where a dataset is published."""

    path: str
    config: str | None = None
    split: str = "train"


class Template(_Form):
    """A dataset's template, as a catalogue entry, a user's file or a mapping in the configuration."""

    name: str = ""
    purpose: str | None = Field(None, description="grammar, knowledge, dialogue, reasoning, procedural, …")
    licence: str | None = None
    hub: Hub | None = None
    about: str | None = None
    required: dict[str, str] = Field(
        default_factory=dict, description=f"Field (dotted) → its type: {', '.join(_TYPES)} (strings: a list of them)."
    )
    optional: dict[str, str] = Field(
        default_factory=dict, description="Field (dotted) → the type it has where it is neither missing nor null."
    )
    filter: Filter = Field(default_factory=Filter)
    prepare: str | None = Field(None, description="module:function(record, draw) → the fields that the template sees.")
    text: str | None = Field(None, description="Jinja2 template of the document.")
    chat: Chat | None = None
    function: str | None = Field(None, description="module:function(record) → text or messages.")
    example: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _field_lists(cls, value: Any) -> Any:
        """`required: [a, b]` means that each is a string; so for `optional`."""
        if isinstance(value, dict):
            lists = {key: value[key] for key in ("required", "optional") if isinstance(value.get(key), list)}
            return {**value, **{key: {str(field): "string" for field in fields} for key, fields in lists.items()}}
        return value

    @model_validator(mode="after")
    def _one_form(self) -> Template:
        if sum(form is not None for form in (self.text, self.chat, self.function)) != 1:
            raise ValueError("a template has exactly one of text, chat and function")
        for key, fields in (("required", self.required), ("optional", self.optional)):
            for field, kind in fields.items():
                if kind not in _TYPES:
                    raise ValueError(f"{key}.{field}: unknown type {kind!r}; one of {', '.join(_TYPES)}")
        return self


Renderer = Callable[[dict, Context], Document]


def lookup(record: Any, path: str) -> Any:
    """The value at a dotted path, or None. A key that holds dots itself is found first."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for part in path.split("."):
        if isinstance(record, dict):
            record = record.get(part)
        elif isinstance(record, list) and part.isdecimal() and int(part) < len(record):
            record = record[int(part)]
        else:
            return None
    return record


def load_function(reference: str) -> Callable:
    """The function behind `module:function`.

    Raises:
      ConfigError: it cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"template {reference!r}: cannot be imported ({error}); the module must be installed or on PYTHONPATH"
        ) from None


def compile_template(template: Template, special_tokens: Sequence[str]) -> Renderer:
    """Compiles a template to `renderer(record, context) -> document`.

    Args:
      special_tokens: the tokenizer's special tokens; where the template itself writes one, it is a control token.

    The renderer raises `Reject` and `Filtered`, and whatever a user's own function or Jinja2 expression raises.

    Raises:
      ConfigError: the template is not valid, or needs control tokens that the tokenizer lacks.
    """
    check = _compile_check(template.required, template.optional)
    prepare = load_function(template.prepare) if template.prepare else None
    if template.text is not None:
        # After `prepare` the template sees other fields than those that were checked.
        strings = {field for field, kind in template.required.items() if kind == "string" and prepare is None}
        body = _compile_text(template.text, special_tokens, template.name, strings)
    elif template.chat is not None:
        body = _compile_chat(template.chat, special_tokens, template.name)
    else:
        body = _compile_function(template.function or "", special_tokens, template.name)

    if prepare is None:

        def render(record: dict, context: Context) -> Document:
            check(record)
            return body(record, context)
    else:

        def render(record: dict, context: Context) -> Document:
            check(record)
            return body(prepare(record, Draw(context.seed, record)), context)

    return render


def _compile_check(required: dict[str, str], optional: dict[str, str]) -> Callable[[dict], None]:
    fields = [(field, _TYPES[kind], kind, True) for field, kind in required.items()]
    fields += [(field, _TYPES[kind], kind, False) for field, kind in optional.items() if field not in required]

    def check(record: dict) -> None:
        for field, kind, name, needed in fields:
            value = record[field] if field in record else lookup(record, field)
            if value is None:
                if not needed:
                    continue
                code = "null_field" if field in record else "missing_field"
                raise Reject(code, f"required field {field!r} is {'null' if field in record else 'missing'}")
            if not isinstance(value, kind) or (name == "number" and isinstance(value, bool)):
                raise Reject("wrong_type", f"field {field!r} is {json_type(value)}, not {name}")
            if name == "strings":
                for number, item in enumerate(value):
                    if not isinstance(item, str):
                        raise Reject("wrong_type", f"{field}[{number}] is {json_type(item)}, not string")
            if needed and not value and name in ("string", "list", "strings", "object"):
                raise Reject("empty_field", f"required field {field!r} is empty")

    return check


def json_type(value: Any) -> str:
    """What JSON calls the type of `value`, for messages."""
    if value is None:
        return "null"
    for name, kind in (("boolean", bool), ("string", str), ("list", list), ("object", dict), ("number", (int, float))):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(autoescape=False, keep_trailing_newline=True, finalize=_to_text)


def _to_text(value: Any) -> str:
    """What `{{ value }}` writes: nothing for null or undefined; Python's notation of a list or an object is no text."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise Reject(
            "wrong_type", f"the template writes {json_type(value)} where text belongs; loop over it or `tojson`"
        )
    return str(value)


def _compile_text(source: str, special_tokens: Sequence[str], name: str, strings: set[str]) -> Renderer:
    """A Jinja2 text template. One that only joins fields and literals becomes a plain, faster function."""
    # Longest first, so that a token that begins like another one is found whole.
    used = sorted((token for token in special_tokens if token in source), key=lambda token: (-len(token), token))
    marked = source.strip()
    for index, token in enumerate(used):
        marked = marked.replace(token, chr(_STAND_IN + index))
    environment = _environment()
    try:
        parts = _plain_parts(environment.parse(marked))
        compiled = environment.from_string(marked)
        compiled.globals = dict(compiled.globals)  # Jinja copies it for every record; its ChainMap takes 7 µs
    except TemplateError as error:
        raise ConfigError(f"template {name or source[:40]!r}: {error}; see the Jinja2 documentation") from None

    if parts is not None:
        to_text: Callable[[dict], str] = _joiner(parts, strings)
    else:

        def to_text(record: dict) -> str:
            return compiled.render(record)

    if not used:
        return lambda record, context: to_text(record)

    def render(record: dict, context: Context) -> Document:
        split = _STAND_INS.split(to_text(record))
        controls = [used[ord(mark) - _STAND_IN] for mark in split[1::2]]
        return Segments(split[::2], controls)

    return render


class _Field(NamedTuple):
    """`{{ name }}` or `{{ name or 'default' }}` of a plain template."""

    name: str
    default: str | None = None


def _plain_parts(tree: nodes.Template) -> list[str | _Field] | None:
    """Literals and fields of a template that only joins them, else None."""
    parts: list[str | _Field] = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            match node:
                case nodes.TemplateData(data=data):
                    parts.append(data)
                case nodes.Name(name=name):
                    parts.append(_Field(name))
                case nodes.Or(left=nodes.Name(name=name), right=nodes.Const(value=str(default))):
                    parts.append(_Field(name, default))
                case _:
                    return None
    return parts


def _joiner(parts: list[str | _Field], strings: set[str]) -> Callable[[dict], str]:
    match parts:
        case [_Field(name=field)] if field in strings:
            return lambda record: record[field]
    literals = [part if isinstance(part, str) else "" for part in parts]
    fields = [(place, *part) for place, part in enumerate(parts) if isinstance(part, _Field)]

    def join(record: dict) -> str:
        out = literals.copy()
        for place, name, default in fields:
            value = record.get(name)
            if default is not None and not value:
                value = default
            out[place] = value if type(value) is str else _to_text(value)
        return "".join(out)

    return join


def _compile_chat(chat: Chat, special_tokens: Sequence[str], name: str) -> Renderer:
    _require_chat_tokens(special_tokens, name)
    for key, source in (("system", chat.system), ("after", chat.after)):
        written = [token for token in special_tokens if token in (source or "")]
        if written:
            raise ConfigError(
                f"template {name!r}: chat.{key} writes {written[0]}, but a chat's control tokens follow from its form; "
                "write such a document as a text template"
            )
    system = _compile_text(chat.system, [], name, set()) if chat.system else None
    after = _compile_text(chat.after, [], name, set()) if chat.after else None
    roles, role_key, content_key = chat.roles, chat.role, chat.content
    pairs = list(chat.pairs.items()) if chat.pairs else None

    def other_content(value: Any, number: int, key: str) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return str(value)
        raise Reject("wrong_type", f"{chat.messages}[{number}].{key} is {json_type(value)}, not string")

    def render(record: dict, context: Context) -> Document:
        messages: list[tuple[str, str]] = []
        skipped = 0
        if system is not None:
            messages.append(("system", system(record, context)))
        turns = lookup(record, chat.messages)
        if not isinstance(turns, list):
            raise Reject("wrong_type", f"field {chat.messages!r} is {json_type(turns)}, not list")
        for number, turn in enumerate(turns):
            if not isinstance(turn, dict):
                raise Reject("wrong_type", f"{chat.messages}[{number}] is {json_type(turn)}, not object")
            if pairs is not None:
                for role, key in pairs:
                    content = turn.get(key)
                    messages.append((role, content if type(content) is str else other_content(content, number, key)))
                continue
            raw_role = turn.get(role_key)
            role = roles.get(raw_role) if isinstance(raw_role, str) else None
            if role is None:
                skipped += 1
                continue
            content = turn.get(content_key)
            messages.append((role, content if type(content) is str else other_content(content, number, content_key)))
        tail = after(record, context) if after is not None else ""
        segments = chat_segments(messages, f"\n\n{tail}" if tail else "")
        if skipped:
            context.skipped_turns["unknown_role"] = context.skipped_turns.get("unknown_role", 0) + skipped
        return segments

    return render


def _require_chat_tokens(special_tokens: Sequence[str], name: str) -> None:
    missing = [token for token in (IM_START, IM_END) if token not in special_tokens]
    if missing:
        raise ConfigError(
            f"template {name!r} renders chat in ChatML, but the tokenizer has no {' and '.join(missing)}; "
            "use a tokenizer that has them, or a text template"
        )


def _compile_function(reference: str, special_tokens: Sequence[str], name: str) -> Renderer:
    function = load_function(reference)
    chat_ready = {IM_START, IM_END} <= set(special_tokens)

    def render(record: dict, context: Context) -> Document:
        value = function(record)
        if isinstance(value, (str, Segments)):
            return value
        if value is None:
            raise Filtered("function_returned_none")
        if not isinstance(value, (list, tuple)):
            raise Reject("wrong_type", f"{reference} returned {type(value).__name__}; return text or messages")
        if not chat_ready:
            _require_chat_tokens(special_tokens, name)
        messages = []
        for number, message in enumerate(value):
            if isinstance(message, dict):
                message = (message.get("role"), message.get("content"))
            role, content = message if isinstance(message, (list, tuple)) and len(message) == 2 else (None, None)
            if role not in _ROLES or not isinstance(content, str):
                raise Reject("wrong_type", f"{reference} returned a message {number} that is not (role, text)")
            messages.append(Message(role, content))
        return chat_segments(messages)

    return render
