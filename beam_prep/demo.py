"""The demo's raw data: text that every Python installation carries, and a configuration for it."""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from beam_prep import storage
from beam_prep.errors import ConfigError

# Modules that import quickly, everywhere, and do nothing else.
_MODULES = """
abc argparse array ast asyncio base64 bdb binascii bisect builtins bz2 calendar cmath cmd code codecs collections
collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy csv ctypes dataclasses
datetime decimal difflib dis doctest email email.message email.policy email.utils enum errno filecmp fileinput fnmatch
fractions ftplib functools gc getopt getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http
http.client http.cookies http.server importlib importlib.metadata importlib.resources inspect io ipaddress itertools
json keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes mmap
multiprocessing multiprocessing.pool numbers operator optparse os os.path pathlib pdb pickle pickletools pkgutil
platform plistlib poplib pprint profile pstats queue quopri random re reprlib runpy sched secrets select selectors
shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string struct subprocess
symtable sys sysconfig tarfile tempfile textwrap threading time timeit token tokenize trace traceback tracemalloc types
typing unicodedata unittest unittest.mock urllib.parse urllib.request urllib.robotparser uuid venv warnings wave
weakref webbrowser wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax xmlrpc.client zipapp zipfile zipimport
zlib zoneinfo
"""

_REPLACED = ("set_trace", "showwarning")

_HEADER = "# beam-prep demo:"

_CONFIG = """\
{header} change anything here, then: beam-prep run {path} --overwrite
tokenizer: qwen3
context_length: 4096          # tokens a sequence
seed: 0
output: {output}
datasets:
  - name: topics              # the library reference's topics (import, lambda, formatting …)
    input: {raw}/topics.jsonl
    template:                 # a template of one's own; `beam-prep datasets` lists those that ship with beam-prep
      required: [title, text]
      text: |
        # {{{{ title }}}}

        {{{{ text }}}}
    epochs: 2                 # each document is seen twice
  - name: functions           # documented functions and classes, as questions and answers
    input: {raw}/functions.jsonl
    template:
      required: [name, doc]   # a signature is not always known
      text: |
        <|im_start|>user
        What does `{{{{ name }}}}{{{{ signature }}}}` do?<|im_end|>
        <|im_start|>assistant
        {{{{ doc }}}}<|im_end|>
    filter: {{min_chars: 150}}  # of the rendered text
"""


class Demo(NamedTuple):
    """Where a demo is."""

    config: str
    output: str
    again: bool
    """Whether the folder held a demo before; then its output may be replaced."""


def write_demo(folder: str) -> Demo:
    """Writes raw data and configuration below a folder. A configuration that is there already is kept.

    Raises:
      ConfigError: the folder holds a configuration that is not the demo's.
    """
    path, output = storage.join(folder, "config.yaml"), storage.join(folder, "out")
    again = storage.exists(path)
    if again and not storage.read_bytes(path).startswith(_HEADER.encode()):
        raise ConfigError(f"{path}: is not the demo's; choose another --output")
    raw = storage.join(folder, "raw")
    _write_rows(storage.join(raw, "topics.jsonl"), topics())
    _write_rows(storage.join(raw, "functions.jsonl"), functions())
    if not again:
        text = _CONFIG.format(header=_HEADER, path=path, output=output, raw=raw)
        storage.write_bytes(path, [text.encode()])
    return Demo(path, output, again)


def _write_rows(path: str, rows: Iterator[dict[str, Any]]) -> None:
    data = b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in rows)
    # Left alone where it is the same, so that a second demo finds its output done.
    if not (storage.exists(path) and storage.read_bytes(path) == data):
        storage.write_bytes(path, [data])


def topics() -> Iterator[dict[str, Any]]:
    """The library reference's topics: title and text."""
    from pydoc_data.topics import topics as texts

    for title, text in sorted(texts.items()):
        yield {"title": title, "text": text.strip()}


def functions() -> Iterator[dict[str, Any]]:
    """Documented functions and classes of the standard library: name, signature and doc; each object once."""
    seen: set[int] = set()
    for module_name in _MODULES.split():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from list(_members(module_name, seen))


def _members(module_name: str, seen: set[int]) -> Iterator[dict[str, Any]]:
    try:
        module = importlib.import_module(module_name)
    except Exception:  # left out of some builds (sqlite3, ssl, zoneinfo …)
        return
    for name, value in sorted(vars(module).items()):
        yield from _documented(f"{module_name}.{name}", name, value, seen)


def _documented(path: str, name: str, value: Any, seen: set[int], depth: int = 0) -> Iterator[dict[str, Any]]:
    # Hooks are what the process at hand has made of them.
    if name.startswith("_") or name.endswith("hook") or name in _REPLACED or id(value) in seen:
        return
    if not (inspect.isroutine(value) or inspect.isclass(value)):
        return
    seen.add(id(value))
    doc = inspect.getdoc(value)
    if doc and " at 0x" not in doc:
        yield {"name": path, "signature": _signature(value), "doc": doc.strip()}
    if inspect.isclass(value) and depth == 0:
        for inner, member in sorted(vars(value).items()):
            yield from _documented(f"{path}.{inner}", inner, getattr(member, "__func__", member), seen, depth + 1)


def _signature(value: Any) -> str | None:
    try:
        signature = str(inspect.signature(value))
    except (ValueError, TypeError, RecursionError):
        return None
    return signature if " at 0x" not in signature else None  # an address changes with every process
