"""Increments, before the graph: what is in an output already, what is new, and whether the two go together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from beam_prep import storage
from beam_prep.config import Config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.inputs import Difference, compare, known_files
from beam_prep.job import Base
from beam_prep.layout import MANIFEST, NEXT, SUCCESS, WORK_FOLDER
from beam_prep.output_folder import hold
from beam_prep.outputs import Output
from beam_prep.publish import finish_publication
from beam_prep.sources import InputFile
from beam_prep.success import answers_for

_MOST_NAMES = 3


class Grown(NamedTuple):
    """An output that is there."""

    base: Base
    manifest: Mapping[str, Any]

    @property
    def input_bytes(self) -> int:
        """Stored bytes of all files that it was made of."""
        return sum(generation["inputs"]["bytes"] for generation in self.manifest["generations"])


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def open_output(output: str, work: str | None, tell: Callable[[str], None] = _to_stderr) -> Grown | None:
    """The finished output that a run would add to; None if there is none yet.

    What a killed increment had begun to publish is finished first.

    Args:
      work: the run's work folder, for the lock.
      tell: is told if that was so.

    Raises:
      BeamPrepError: another run is writing there, or the output is not one that can grow.
    """
    if storage.exists(storage.join(output, NEXT)):
        work = work or (storage.join(output, WORK_FOLDER) if storage.is_local(output) else None)
        with hold(output, work):
            if finish_publication(output):
                tell("an increment that was killed while it was added is there: finished it")
    path, success = storage.join(output, MANIFEST), storage.join(output, SUCCESS)
    manifest = _read(path)
    generations = (manifest or {}).get("generations")
    if not storage.exists(success):
        if generations and len(generations) > 1:
            raise BeamPrepError(
                f"output {output}: holds {len(generations)} generations, but {SUCCESS} is missing; put it back, or "
                "make all of it again with --overwrite in place of --increment"
            )
        return None
    if manifest is None or not answers_for(storage.read_bytes(success), str(manifest.get("fingerprint"))):
        raise BeamPrepError(
            f"output {output}: {SUCCESS} and {MANIFEST} disagree; `beam-prep verify {output}` says more"
        )
    if not generations:
        raise BeamPrepError(
            f"output {output}: was made by an earlier version, which kept no list of its inputs, so that nothing can "
            "be added to it; make it again with --overwrite in place of --increment"
        )
    return Grown(Base(manifest["fingerprint"], len(generations)), manifest)


def _read(path: str) -> Mapping[str, Any] | None:
    if not storage.exists(path):
        return None
    try:
        manifest = json.loads(storage.read_bytes(path))
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) else None


def refuse_shares(outputs: Sequence[Output]) -> None:
    """Raises ConfigError for a configuration that divides a whole, which an output that grows never is."""
    if any(any(output.weights) or output.total_tokens is not None for output in outputs):
        raise ConfigError(
            "--increment: `weight` and `total_tokens` are parts of a whole, and an output that grows has none yet: "
            "what is left out for them today could not be had back tomorrow; give datasets `epochs`, which hold for "
            "every document by itself, or run without --increment over everything"
        )


def require_same(output: str, grown: Grown, recipe: str, config: Config) -> None:
    """Raises ConfigError if a run would make other data of the same records than an output holds; says what differs."""
    if grown.manifest.get("recipe") == recipe:
        return
    before = grown.manifest.get("configuration") or {}
    now = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"output"})
    differs = _differences(before, now) or ["a template, the tokenizer's files, or the format of this version"]
    raise ConfigError(
        f"--increment: {output} was made in another way; what differs: {', '.join(differs)}. Go back to what it was "
        "made with, choose another --output, or make all of it again with --overwrite in place of --increment"
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of two configurations that differ; inputs and what else may change left out."""
    names = [[d.get("name") for d in c.get("datasets") or []] for c in (before, now)]
    if names[0] != names[1]:
        return ["the names or the order of the datasets"]
    free = ("datasets", "views", "max_rejects", "tokenizer_backend")
    keys = sorted(key for key in {*before, *now} - {*free} if before.get(key) != now.get(key))
    found = [f"`{key}`" for key in keys]
    for old, new in zip(before.get("datasets") or [], now.get("datasets") or [], strict=True):
        own = sorted(k for k in {*old, *new} - {"input", "max_rejects"} if old.get(k) != new.get(k))
        found += [f"`{key}` of dataset {new['name']!r}" for key in own]
    return found


def only_new(
    output: str,
    grown: Grown,
    names: Sequence[str],
    files: Sequence[Sequence[InputFile]],
    accept_changed: bool,
    tell: Callable[[str], None] = _to_stderr,
) -> list[list[InputFile]]:
    """The files that the output does not hold yet, by source.

    Args:
      names, files: one a source; the files are those that are there now.
      accept_changed: whether files may have changed or gone since they were read; a changed one is read again.
      tell: is told of those.

    Raises:
      BeamPrepError: some have, and that is not accepted; or a list of inputs is damaged.
    """
    lists = [generation["inputs"] for generation in grown.manifest["generations"]]
    found = compare(known_files(output, lists), names, files)
    if not found.changed and not found.gone:
        return found.new
    if accept_changed:
        tell(f"inputs that {output} holds: {_described(found)}; changed ones are read again, and what they held stays")
        return found.new
    raise BeamPrepError(
        f"inputs that {output} holds: {_described(found)}. Put them back; or add --accept-changed-inputs: changed ones "
        "are then read again, documents that are there already left out, and nothing that is there is taken away"
    )


def _described(found: Difference) -> str:
    parts = []
    for paths, what in ((found.changed, "changed since they were read"), (found.gone, "gone, or found by no pattern")):
        if paths:
            more = f" and {len(paths) - _MOST_NAMES:,} more" if len(paths) > _MOST_NAMES else ""
            parts.append(f"{len(paths):,} {what} ({', '.join(sorted(paths)[:_MOST_NAMES])}{more})")
    return "; ".join(parts)
