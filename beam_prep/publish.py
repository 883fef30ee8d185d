"""Publish: the new manifest of an output that grows takes the old one's place, so that no reader ever stands between.

Everything that belongs to the new generation is on disk under names of its own. Then `manifest-next.json` is written:
from that moment the generation is part of the output, and what follows can be done again as often as need be:

1. indexes and views, each a continuation of the old one. A reader that opens them meanwhile sees the old sequences or
   all; the list of files is written before the places within them.
2. `_SUCCESS` for both manifests, then `manifest.json`, then `_SUCCESS` for the new one alone. So at every moment
   `_SUCCESS` answers for the manifest that is there.
3. `report.html`; then `manifest-next.json` goes.

Killed on the way, the next increment first does the rest of this.
"""

from __future__ import annotations

import json
from typing import Any

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.index import write_index
from beam_prep.layout import MANIFEST, NEXT, SUCCESS
from beam_prep.success import success_mark
from beam_prep.tokenizer import TokenizerSpec
from beam_prep.views import fitting, present_views, write_view


def add_generation(output: str, base: str, manifest: dict[str, Any], tokenizer: TokenizerSpec) -> dict[str, Any]:
    """Makes a finished run a generation of an output; returns the output's manifest.

    Args:
      base: fingerprint of the output that the run was made for.
      manifest: the one that the new generation would have alone.

    Raises:
      BeamPrepError: the output is not that one any more. Nothing is changed then.
    """
    from beam_prep.generations import merged

    before = storage.read_bytes(storage.join(output, MANIFEST))
    current = json.loads(before)
    if current["fingerprint"] == manifest["fingerprint"]:  # a second attempt of a step that had succeeded
        finish_publication(output, tokenizer)
        return current
    whole = merged(current, manifest) if current["fingerprint"] == base else {}
    data = manifest_bytes(whole)
    if not whole or not _commit(output, before, data):
        raise BeamPrepError(
            f"output {output}: another run has added to it since this one began, and this one has changed nothing; "
            "give the command again"
        )
    publish(output, before, data, tokenizer)
    return whole


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """A manifest as it is stored."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _commit(output: str, before: bytes, data: bytes) -> bool:
    """Writes the file that makes a generation part of its output; False if another one has become part of it.

    Locally the lock is held. On gs:// the object is only created if there is none; other stores cannot say so, and two
    runs that end within the same second could both believe that they were first.
    """
    path = storage.join(output, NEXT)
    if not _create(path, data):
        return False
    # Another one's may have come and gone since `before` was read; its manifest came before it went.
    if storage.read_bytes(storage.join(output, MANIFEST)) in (before, data):
        return True
    storage.delete(path)
    return False


def _create(path: str, data: bytes) -> bool:
    """Writes a file that must be the first of its name; False if there is one of other content."""
    if path.startswith("gs://"):
        from beam_prep.byte_ranges import create_object

        if create_object(path, data):
            return True
    elif not storage.exists(path):
        storage.write_small(path, data)
    return storage.read_bytes(path) == data


def publish(output: str, before: bytes, data: bytes, tokenizer: TokenizerSpec | None = None) -> None:
    """Does what has to be done behind `manifest-next.json`; see the module's text.

    Args:
      before, data: the old manifest and the new one, as they are stored.
    """
    from beam_prep.manifest import parse_manifest
    from beam_prep.report import tokenizer_of, try_report
    from beam_prep.trainer_views import extend_trainer_views

    manifest, old = parse_manifest(data), parse_manifest(before)
    for name, entry in manifest.outputs.items():
        folder = storage.join(output, name)
        paths, sequences = [s.path for s in entry.shards], [s.sequences for s in entry.shards]
        added = entry.model_copy(update={"shards": entry.shards[len(old.outputs[name].shards) :]})
        extend_trainer_views(output, name, old.outputs[name], added, manifest.tokenizer.vocab_size)
        write_index(folder, paths, sequences, 4 * entry.context_length)
        for length in fitting([*entry.views, *present_views(folder)], entry.context_length):
            write_view(folder, paths, sequences, entry.context_length, length)
    new, success = success_mark(manifest.fingerprint, data), storage.join(output, SUCCESS)
    storage.write_small(success, success_mark(old.fingerprint, before) + new)
    storage.write_small(storage.join(output, MANIFEST), data)
    storage.write_small(success, new)
    spec = tokenizer or tokenizer_of(manifest)
    if spec is not None:
        try_report(output, data, spec)
    storage.delete(storage.join(output, NEXT))


def finish_publication(output: str, tokenizer: TokenizerSpec | None = None) -> bool:
    """Does the rest of what a killed run had begun to publish; whether there was any."""
    path = storage.join(output, NEXT)
    if not storage.exists(path):
        return False
    before, data = storage.read_bytes(storage.join(output, MANIFEST)), storage.read_bytes(path)
    fingerprints = _fingerprints(data)
    if before != data and _fingerprints(before) != fingerprints[:-1]:
        storage.delete(path)  # another one was first, and this one was killed before it saw that; see `_commit`
        return False
    publish(output, before, data, tokenizer)
    return True


def _fingerprints(data: bytes) -> list[str]:
    return [generation["fingerprint"] for generation in json.loads(data).get("generations") or []]
