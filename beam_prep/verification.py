"""Verify: hold an output against its own manifest, down to every token. Reads only; one shard in memory at a time."""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import orjson

from beam_prep import storage
from beam_prep.config import Config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.findings import Figures, Finding, Progress, read_if_there, shown
from beam_prep.generation_checks import check_generations, check_inputs, check_publication, is_unfinished
from beam_prep.generations import split
from beam_prep.index import ENTRY_BYTES, FILE_LOCATION, INDEX_FOLDER, SAMPLE_LOCATIONS, difference, index_files
from beam_prep.layout import INPUTS_FOLDER, MANIFEST, NEXT, REJECTED_FOLDER, REPORT, RUN_FILE, SUCCESS, WORK_FOLDER
from beam_prep.manifest import LedgerEntry, Manifest, OutputEntry, SourceEntry, parse_manifest
from beam_prep.split_checks import check_leaks, check_repeats
from beam_prep.success import answers_for, success_mark
from beam_prep.token_checks import check_tokens
from beam_prep.tokenizer import BUNDLED, resolve
from beam_prep.trainer_views import check_trainer_views, trainer_files
from beam_prep.views import asked_views, check_views, fitting, view_files, view_lengths

_GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
"""Without a name and a time, as `write_rejected` has it."""
_OTHER_FILES = (SUCCESS, MANIFEST, REPORT, RUN_FILE)


def verify(output: str, quick: bool = False, progress: Progress = lambda size: None) -> list[Finding]:
    """Everything that is off in an output, the most telling first; an empty list if nothing is.

    Args:
      quick: leaves out what needs the tokens, the sidecars or the rejected records.

    Raises:
      ConfigError: there is no such folder.
    """
    if storage.is_local(output) and not storage.exists(output):
        raise ConfigError(f"{output}: no such folder; give the output of a run")
    manifest: Manifest | None = None
    findings: list[Finding] = []
    try:
        manifest, findings = _read_manifest(output)
    except OSError as error:
        findings = [_unreadable(MANIFEST, error)]
    return findings if manifest is None else [*findings, *verify_against(output, manifest, quick, progress)]


def verify_against(
    output: str, manifest: Manifest, quick: bool = False, progress: Progress = lambda size: None
) -> list[Finding]:
    """Everything in which an output is not as a manifest says; `_SUCCESS` is not looked at."""
    findings: list[Finding] = []
    try:
        paths = sorted(_relative_paths(output, list(manifest.outputs)))
    except OSError as error:
        return [_unreadable(MANIFEST, error)]
    for place, check in _checks(output, manifest, paths, quick, progress):
        try:
            findings += check()
        except OSError as error:  # not ours to read, or a disk that fails
            findings.append(_unreadable(place, error))
    return findings


def _unreadable(place: str, error: OSError) -> Finding:
    return Finding(place, f"cannot be read ({error})")


def _checks(
    output: str, manifest: Manifest, paths: Sequence[str], quick: bool, progress: Progress
) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    """(place, check) of all checks, in the order in which they are made."""
    entries = manifest.outputs.items()
    yield NEXT, partial(check_publication, output, paths)
    for name, entry in entries:
        yield name, partial(check_files, output, name, entry)
    yield MANIFEST, partial(check_settings, manifest)
    in_parts = check_generations(manifest)
    yield MANIFEST, lambda: in_parts
    generations = [(f"generations.{n}." * (n > 0), part) for n, part in enumerate([] if in_parts else split(manifest))]
    for place, part in generations:
        for name, entry in part.outputs.items():
            yield MANIFEST, partial(check_figures, part, name, entry, place)
    for name, entry in entries:
        yield f"{name}/{INDEX_FOLDER}", partial(check_index, output, name, entry)
        yield name, partial(check_views, output, name, entry, asked_views(manifest.configuration), paths)
    for place, part in generations:
        yield MANIFEST, partial(check_ledger, part, place)
        yield REJECTED_FOLDER, partial(check_rejected, output, part, quick)
    yield INPUTS_FOLDER, partial(check_inputs, output, manifest)
    if not quick:
        for _, part in generations:
            for name, entry in part.outputs.items():
                yield name, partial(check_tokens, output, name, entry, part, progress)
        yield MANIFEST, partial(check_leaks, output, manifest)
        if len(generations) > 1:
            yield MANIFEST, partial(check_repeats, output, manifest)
    for name, entry in entries:  # after the sidecars, from which those files follow
        yield name, partial(check_trainer_views, output, name, entry, paths, quick)
    yield MANIFEST, partial(check_orphans, output, manifest, paths)


def _read_manifest(output: str) -> tuple[Manifest | None, list[Finding]]:
    mark = read_if_there(storage.join(output, SUCCESS))
    if mark is None:
        problem = "is missing: the run has not finished, or this is no output; run the job (again)"
        return None, [Finding(SUCCESS, problem)]
    success, _, rest = mark.decode("ascii", "replace").partition("\n")
    data = read_if_there(storage.join(output, MANIFEST))
    if data is None:
        return None, [Finding(MANIFEST, "is missing")]
    try:
        manifest = parse_manifest(data)
    except ValueError as error:
        return None, [Finding(MANIFEST, f"is damaged: {error}")]
    if not answers_for(mark, manifest.fingerprint):
        return manifest, [
            Finding(SUCCESS, f"is of run {success[:12]!r}, but {MANIFEST} is of run {manifest.fingerprint[:12]!r}")
        ]
    if mark == success_mark(manifest.fingerprint, data):
        return manifest, []
    if storage.exists(storage.join(output, NEXT)) and success_mark(manifest.fingerprint, data) in mark:
        return manifest, []  # for two manifests; `check_publication` says so
    if re.fullmatch("[0-9a-f]{64}\n", rest):
        problem = f"has changed since it was written: its sha256 is not the one that {SUCCESS} holds"
        return manifest, [Finding(MANIFEST, problem)]
    return manifest, [Finding(SUCCESS, f"is damaged: its second line is not the sha256 of {MANIFEST}")]


def check_files(output: str, name: str, entry: OutputEntry) -> list[Finding]:
    """Every shard is there with its size, and every sidecar is there."""
    findings = []
    folder = storage.join(output, name)
    sizes = storage.sizes(folder, [path for shard in entry.shards for path in (shard.path, shard.documents)])
    for shard in entry.shards:
        size = sizes[shard.path]
        if size is None:
            findings.append(Finding(f"{name}/{shard.path}", "is missing"))
        elif size != shard.bytes:
            findings.append(Finding(f"{name}/{shard.path}", f"{size:,} bytes on disk, {shard.bytes:,} were written"))
        if sizes[shard.documents] is None:
            findings.append(Finding(f"{name}/{shard.documents}", "is missing"))
    return findings


def check_settings(manifest: Manifest) -> list[Finding]:
    """What the manifest says of itself agrees with the configuration that it holds."""
    check = Figures(MANIFEST)
    asked = manifest.configuration
    for key in ("seed", "context_length"):
        check.equal(key, getattr(manifest, key), asked.get(key, Config.model_fields[key].default), "in `configuration`")
    if "stages" not in asked:
        for name, entry in manifest.outputs.items():
            check.equal(
                f"outputs.{name}.context_length", entry.context_length, manifest.context_length, "in `context_length`"
            )
            packing = asked.get("packing", Config.model_fields["packing"].default)
            check.equal(f"outputs.{name}.packing", entry.packing, packing, "in `configuration`")
    named = [d.get("name") for d in asked.get("datasets") or [] if isinstance(d, dict)]
    check.equal("sources of the ledger", sorted(manifest.ledger), sorted(map(str, named)), "in `configuration`")
    for name, entry in manifest.outputs.items():
        unknown = sorted(set(entry.sources) - set(manifest.ledger))
        check.equal(f"sources of outputs.{name} outside the ledger", len(unknown), 0, "expected")
    tokenizer = manifest.tokenizer
    check.equal(
        "tokenizer.name",
        tokenizer.name,
        asked.get("tokenizer", Config.model_fields["tokenizer"].default),
        "in `configuration`",
    )
    if tokenizer.name in BUNDLED:
        spec = resolve(tokenizer.name)
        for key in ("sha256", "eod_token_id", "vocab_size"):
            check.equal(f"tokenizer.{key}", getattr(tokenizer, key), getattr(spec, key), "in the tokenizer")
    if tokenizer.eod_token_id >= tokenizer.vocab_size:
        check.add(f"tokenizer.eod_token_id {tokenizer.eod_token_id} is outside of the vocabulary")
    return check.findings


def check_figures(manifest: Manifest, name: str, entry: OutputEntry, within: str = "") -> list[Finding]:
    """The figures of one output add up. `within`: where in the manifest they stand."""
    check = Figures(f"{MANIFEST}: {within}outputs.{name}")
    length = entry.context_length
    check.equal("sequences", entry.sequences, sum(s.sequences for s in entry.shards), "in its shards")
    check.equal("tokens", entry.tokens, sum(s.tokens for s in entry.sources.values()), "from its sources")
    views = fitting(asked_views(manifest.configuration), length)
    check.equal("views", getattr(entry, "views", []), views, "from `views` of `configuration`")
    check.equal(
        "sequences × context_length", entry.sequences * length, entry.tokens + entry.padding, "as tokens + padding"
    )
    for shard in entry.shards:
        check.equal(f"{shard.path}: bytes", shard.bytes, 4 * length * shard.sequences, "as sequences of uint32")
    paths = [path for shard in entry.shards for path in (shard.path, shard.documents)]
    check.equal("files of its shards", len(paths), len(set(paths)), "of distinct names")
    drops = manifest.configuration.get("tail", "pad") == "drop"
    if entry.packing == "concat" and entry.padding >= (1 if drops else length):
        check.add(f"padding is {entry.padding:,}: more than the end of one sequence")
    if entry.dropped_tokens >= (length if drops else 1):
        check.add(f"dropped_tokens is {entry.dropped_tokens:,}: more than `tail` of the configuration may leave out")
    for source, part in entry.sources.items():
        share = part.tokens / entry.tokens if entry.tokens else 0.0
        if not math.isclose(part.share, share, rel_tol=1e-9):
            check.add(f"sources.{source}.share is {part.share}, but its tokens are {share} of all")
        if part.copies < part.documents:
            check.add(f"sources.{source}: {part.documents:,} documents, but {part.copies:,} copies of them")
        _check_epochs(check, source, part, drops)
    copies = sum(part.copies for part in entry.sources.values())
    if not entry.cut_documents <= copies <= sum(s.spans for s in entry.shards):
        check.add(f"{entry.cut_documents:,} cut_documents, {copies:,} copies and the spans of the shards do not agree")
    for key, part, whole in (
        ("fill", entry.tokens, entry.sequences * length),
        ("cut_share", entry.cut_documents, copies),
    ):
        if not math.isclose(getattr(entry, key), part / whole if whole else 0.0, rel_tol=1e-9):
            check.add(f"{key} is {getattr(entry, key)}, but it is {part:,} of {whole:,}")
    return check.findings


def _check_epochs(check: Figures, source: str, part: SourceEntry, drops: bool) -> None:
    """At rate r each document is there floor(r) or ceil(r) times, and so the realised epochs lie between."""
    if (rate := part.asked_epochs) is None:
        return
    if part.available is not None:
        epochs = part.copies / part.available if part.available else 0.0
        if not math.isclose(part.epochs, epochs, rel_tol=1e-9):
            check.add(f"sources.{source}.epochs is {part.epochs:g}, but its copies are {epochs:g} of those available")
    low, high = (0 if drops else math.floor(rate)), math.ceil(rate)
    if not low - 1e-9 <= part.epochs <= high + 1e-9:
        check.add(f"sources.{source}.epochs is {part.epochs:g}, but {rate:g} were asked for")


def check_index(output: str, name: str, entry: OutputEntry) -> list[Finding]:
    """The index is, byte for byte, the one that follows from the shards."""
    paths, sequences = [s.path for s in entry.shards], [s.sequences for s in entry.shards]
    lengths = {FILE_LOCATION: sum(len(p.encode()) + 1 for p in paths), SAMPLE_LOCATIONS: ENTRY_BYTES * sum(sequences)}
    findings = []
    for file, parts in index_files(paths, sequences, 4 * entry.context_length).items():
        place = f"{name}/{INDEX_FOLDER}/{file}"
        size = storage.size(storage.join(output, place))
        if size is not None and size != lengths[file]:
            findings.append(Finding(place, f"{size:,} bytes, but the shards need {lengths[file]:,}"))
        elif (problem := difference(storage.join(output, place), parts)) is not None:
            findings.append(Finding(place, problem))
    return findings


def check_ledger(manifest: Manifest, within: str = "") -> list[Finding]:
    """Every record of a source went somewhere, and its tokens are in the outputs. `within`: as in `check_figures`."""
    findings: list[Finding] = []
    for source, entry in manifest.ledger.items():
        check = Figures(f"{MANIFEST}: {within}ledger.{source}")
        check.equal(
            "records", entry.records, _ends(entry), "as rejected + filtered + duplicates + sampled_out + documents"
        )
        parts = [o.sources[source] for o in manifest.outputs.values() if source in o.sources]
        check.equal("tokens", entry.tokens, sum(p.tokens for p in parts), "in the outputs")
        in_outputs = [p.documents for p in parts] or [0]
        if any(o.dropped_tokens for o in manifest.outputs.values()):
            enough = True  # documents that lie wholly in what `tail` drops are in no output
        else:
            enough = entry.documents <= sum(in_outputs)
        if not enough or entry.documents < max(in_outputs):
            check.add(f"documents is {entry.documents:,}, but the outputs hold {', '.join(map(shown, in_outputs))}")
        if manifest.configuration.get("dedup") == "none":
            check.equal("duplicates", entry.duplicates, 0, "because `dedup: none` keeps them")
        findings += check.findings
    return findings


def _ends(entry: LedgerEntry) -> int:
    lost = sum(entry.rejected.values()) + sum(entry.filtered.values())
    return lost + entry.duplicates + entry.sampled_out + entry.documents


def check_rejected(output: str, manifest: Manifest, quick: bool = False) -> list[Finding]:
    """The rejected records are there, each under the reason that the ledger counts."""
    found: dict[str, Counter] = {}
    findings = []
    for path in manifest.rejected_files:
        if storage.size(storage.join(output, path)) is None:
            findings.append(Finding(path, "is missing"))
            continue
        if quick:
            continue
        try:
            for line in _rejected_lines(storage.join(output, path)):
                letter = orjson.loads(line)
                found.setdefault(letter["dataset"], Counter())[letter["reason"]] += 1
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            findings.append(Finding(path, f"cannot be read ({error})"))
    if findings or quick:
        return findings
    for source, entry in manifest.ledger.items():
        counted = {reason: count for reason, count in entry.rejected.items() if count}
        in_files = dict(found.get(source, {}))
        if counted != in_files:
            problem = f"rejected is {_reasons(counted)}, but the rejected files hold {_reasons(in_files)}"
            findings.append(Finding(f"{MANIFEST}: ledger.{source}", problem))
    return findings


def _rejected_lines(path: str) -> Iterator[bytes]:
    """The lines of a file of rejected records.

    Raises ValueError where the file is not as `write_rejected` leaves it, though gzip would read it.
    """
    with storage.open_read(path) as stored:
        if stored.read(len(_GZIP_HEADER)) != _GZIP_HEADER:
            raise ValueError("its first bytes are not those that were written")
        stored.seek(-8, os.SEEK_END)
        stated = int.from_bytes(stored.read(8)[4:], "little")
        stored.seek(0)
        size = 0
        with gzip.GzipFile(fileobj=stored) as lines:
            for line in io.BufferedReader(lines):
                size += len(line)
                yield line
    if size % 2**32 != stated:  # gzip skips zeros behind its end
        raise ValueError("it goes on behind its end")


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "nothing"


def check_orphans(output: str, manifest: Manifest, paths: Sequence[str]) -> list[Finding]:
    """Nothing lies in the output that the manifest does not know, but for views.

    Args:
      paths: of all its files, relative to it.
    """
    known = {*_OTHER_FILES, *manifest.rejected_files, *is_unfinished(output, manifest, paths)}
    known |= {generation.inputs.path for generation in manifest.generations}
    for name, entry in manifest.outputs.items():
        known |= {f"{name}/{INDEX_FOLDER}/{file}" for file in (FILE_LOCATION, SAMPLE_LOCATIONS)}
        known |= {f"{name}/{path}" for shard in entry.shards for path in (shard.path, shard.documents)}
        known |= view_files(name, view_lengths(name, paths)) | trainer_files(name, entry, storage.is_local(output))
    if not storage.is_local(output):  # a Hub tokenizer, kept for workers that may still be there
        known.add(f"{WORK_FOLDER}/tokenizer.json")
    orphans = [path for path in paths if path not in known]
    if not orphans:
        return []
    more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
    return [Finding(orphans[0], f"belongs to no shard, index or record of this output{more}; delete it")]


def _relative_paths(output: str, names: Sequence[str]) -> Iterator[str]:
    """All files of a run, empty folders (`name/`), and links to folders that are not an output's.

    Args:
      names: of the outputs.
    """
    if storage.is_local(output):  # without a look at the files: a link's shard may be gone
        pending = [""]
        while pending:
            folder = pending.pop()
            with os.scandir(os.path.join(output, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            if not entries and folder:
                yield f"{folder}/"
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                ours = any(f"{name}/".startswith(f"{path}/") or path.startswith(f"{name}/") for name in names)
                if entry.is_dir() and (ours or not entry.is_symlink()):
                    pending.append(path)
                else:
                    yield path
        return
    base = output.rstrip("/") + "/"
    for file in storage.list_files(output.rstrip("/") or "/"):
        path = file.path.replace("\\", "/")
        yield path[len(base) :] if path.startswith(base) else path


def require_intact(output: str) -> None:
    """The quick checks, for an output that is about to be relied on.

    Raises:
      BeamPrepError: names the first finding.
    """
    findings = verify(output, quick=True)
    if findings:
        place, problem = findings[0]
        raise BeamPrepError(f"{storage.join(output, place)}: {problem}; run the job again with --overwrite")
