"""Glob patterns of local paths. Only the folders that a pattern names are looked into."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator

_MAGIC = re.compile(r"[*?[]")


def local_match(pattern: str) -> list[str]:
    """What matches, sorted, folders left out; links to nothing, pipes and the like included.

    `*`, `?` and `[…]` stand for characters of one name; `**` for any number of folders (links to folders are not
    followed there, so that loops of them end), or within a name for any number of characters, slashes too.

    Raises:
      OSError: a folder cannot be listed.
    """
    if "\0" in pattern:
        return []
    pattern += "*" if pattern.endswith("/") else ""
    root = "/" if pattern.startswith("/") else ""
    parts = [part for part in pattern.split("/") if part]
    found = {path for form in _plain_forms(parts) for path in _walk(root, form)}
    return sorted(path for path in found if not os.path.isdir(path))


def _plain_forms(parts: list[str]) -> Iterator[list[str]]:
    """`a**b` within a name is `a*b`, or `a*`, any folders, and `*b`."""
    for number, part in enumerate(parts):
        if "**" in part and part != "**":
            before, _, after = part.partition("**")
            for middle in ([f"{before}*{after}"], [*([f"{before}*"] if before else []), "**", f"*{after}"]):
                yield from _plain_forms([*parts[:number], *middle, *parts[number + 1 :]])
            return
    yield parts


def _walk(base: str, parts: list[str]) -> Iterator[str]:
    plain = next((number for number, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    base = os.path.join(base, *parts[:plain])
    if plain == len(parts):
        if os.path.lexists(base):
            yield base
        return
    part, rest = parts[plain], parts[plain + 1 :]
    if base and not os.path.isdir(base):
        return
    with os.scandir(base or ".") as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    if part == "**":
        yield from _walk(base, rest) if rest else (os.path.join(base, entry.name) for entry in entries)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(os.path.join(base, entry.name), parts[plain:])
        return
    matches = re.compile(fnmatch.translate(part)).match
    for entry in entries:
        if matches(entry.name):
            yield from _walk(os.path.join(base, entry.name), rest)


def why_no_file(path: str) -> str | None:
    """What stands at `path`, if it is not a file that can be read like others; None if it is one."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, where no file can be found ({error.strerror})"
        return f"cannot be looked up ({error.strerror})"
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return None if stat.S_ISREG(mode) else f"is {kinds.get(stat.S_IFMT(mode), 'no regular file')}"
