"""Views: indexes of shorter sequences over an output's shards, beside the one of its own. No token is copied."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_prep import storage
from beam_prep.errors import ConfigError
from beam_prep.findings import Finding
from beam_prep.index import FILE_LOCATION, INDEX_FOLDER, SAMPLE_LOCATIONS, difference, index_files

if TYPE_CHECKING:
    from beam_prep.manifest import OutputEntry


def view_folder(length: int) -> str:
    """The folder of a view, beside `index`."""
    return f"{INDEX_FOLDER}-{length}"


def divisors_near(number: int, wanted: int) -> list[int]:
    """The largest divisor of `number` up to `wanted`, and the smallest above it that is less than `number`, if any."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = sorted({*low, *(number // n for n in low)} - {number})
    below, above = [n for n in divisors if n <= wanted], [n for n in divisors if n > wanted]
    return [*below[-1:], *above[:1]]


def refusal(context_length: int, length: int) -> str | None:
    """Why an output of `context_length` can have no view of `length`, and of what it can; None if it can."""
    if length >= context_length:
        return f"its sequences have {context_length} tokens, and those of a view are shorter"
    if context_length % length:
        near = " and ".join(map(str, divisors_near(context_length, length)))
        return (
            f"its sequences have {context_length} tokens, which is no multiple of {length}; the nearest that divide "
            f"it: {near}"
        )
    return None


def fitting(lengths: Iterable[int], context_length: int) -> list[int]:
    """Those of `lengths` that an output of `context_length` can have a view of, each once."""
    return [length for length in dict.fromkeys(lengths) if refusal(context_length, length) is None]


def asked_views(configuration: Mapping[str, Any]) -> list[int]:
    """The `views` of a configuration as a manifest holds it, which may be damaged."""
    views = configuration.get("views")
    return [n for n in views if isinstance(n, int) and n >= 1] if isinstance(views, list) else []


def choose(
    outputs: Mapping[str, OutputEntry], names: Sequence[str], length: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """The outputs that get a view.

    Args:
      names: only these, each of which must then fit; all that fit if empty.

    Returns:
      Their names; and (name, reason) of those that are left out.

    Raises:
      ConfigError: a named output is not there or does not fit, or none does.
    """
    for name in names:
        if name not in outputs:
            raise ConfigError(f"output {name!r} is not there; there is {', '.join(outputs)}")
    wanted = list(dict.fromkeys(names)) or list(outputs)
    reasons = {name: refusal(outputs[name].context_length, length) for name in wanted}
    left_out = [(name, reason) for name, reason in reasons.items() if reason is not None]
    if left_out and (names or len(left_out) == len(wanted)):
        problems = "\n".join(f"output {name!r}: {reason}" for name, reason in left_out)
        raise ConfigError(f"no view of {length}:\n{problems}" if len(left_out) > 1 else problems)
    return [name for name, reason in reasons.items() if reason is None], left_out


def write_view(folder: str, paths: Sequence[str], sequences: Sequence[int], context_length: int, length: int) -> int:
    """Writes the view of `length` below an output's folder; returns its number of sequences.

    The bytes follow from the arguments alone. Killed between its two files it leaves one that no reader takes for an
    index; a second call completes it.

    Args:
      folder: the output's.
      paths: of the shards, relative to it.
      sequences: of each shard.

    Raises:
      ConfigError: `length` does not divide `context_length`.
    """
    reason = refusal(context_length, length)
    if reason is not None:
        raise ConfigError(f"{folder}: {reason}")
    for file, parts in _files(paths, sequences, context_length, length).items():
        storage.write_bytes(storage.join(folder, view_folder(length), file), parts)
    return sum(sequences) * (context_length // length)


def write_output_view(output: str, name: str, entry: OutputEntry, length: int) -> int:
    """`write_view` for an output of a finished run."""
    paths, sequences = [s.path for s in entry.shards], [s.sequences for s in entry.shards]
    return write_view(storage.join(output, name), paths, sequences, entry.context_length, length)


def _files(
    paths: Sequence[str], sequences: Sequence[int], context_length: int, length: int
) -> dict[str, Iterator[bytes]]:
    """The files of a view by name, in the order in which they are written; each in parts."""
    return index_files(paths, [count * (context_length // length) for count in sequences], 4 * length)


def view_lengths(name: str, paths: Iterable[str]) -> list[int]:
    """The lengths of the views that an output has files of, wherever they come from.

    Args:
      name: of the output.
      paths: of all files of the run, relative to its folder.
    """
    pattern = re.compile(rf"{re.escape(name)}/{INDEX_FOLDER}-([1-9][0-9]*)/")
    return sorted({int(found[1]) for found in map(pattern.match, paths) if found})


def present_views(folder: str) -> list[int]:
    """The lengths of the views that an output's folder has files of."""
    parent = f"{folder.rpartition('/')[0]}/" if "/" in folder else ""
    found = storage.match(storage.join(folder, f"{INDEX_FOLDER}-[0-9]*", FILE_LOCATION))
    return view_lengths(folder.removeprefix(parent), [file.path.removeprefix(parent) for file in found])


def view_files(name: str, lengths: Iterable[int]) -> set[str]:
    """The paths of the views' files, relative to the run's folder."""
    return {f"{name}/{view_folder(n)}/{file}" for n in lengths for file in (FILE_LOCATION, SAMPLE_LOCATIONS)}


def check_views(
    output: str, name: str, entry: OutputEntry, asked: Iterable[int], paths: Iterable[str]
) -> list[Finding]:
    """The views are, byte for byte, those that follow from the shards.

    Args:
      asked: lengths that the configuration asks for, which must be there where they fit. Others may be there.
      paths: of all files of the run, relative to its folder.
    """
    findings = []
    for length in sorted({*fitting(asked, entry.context_length), *view_lengths(name, paths)}):
        reason = refusal(entry.context_length, length)
        if reason is not None:
            findings.append(Finding(f"{name}/{view_folder(length)}", f"can be no view: {reason}; delete it"))
            continue
        files = _files(
            [s.path for s in entry.shards], [s.sequences for s in entry.shards], entry.context_length, length
        )
        for file, parts in files.items():
            place = f"{name}/{view_folder(length)}/{file}"
            problem = difference(storage.join(output, place), parts)
            if problem is not None:
                remedy = f"`beam-prep view OUT --context-length {length}` writes it again"
                findings.append(Finding(place, f"{problem}; {remedy}"))
    return findings
