"""Rebuild: what Finalize writes beside the shards, written again from the shards and the manifest."""

from __future__ import annotations

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.index import write_index
from beam_prep.layout import MANIFEST, SUCCESS
from beam_prep.manifest import Manifest, read_manifest
from beam_prep.publish import finish_publication
from beam_prep.report import tokenizer_of, try_report
from beam_prep.success import success_mark
from beam_prep.verification import verify_against
from beam_prep.views import fitting, present_views, write_view


def rebuild(output: str) -> Manifest:
    """Writes indexes, views, `report.html` and `_SUCCESS` of an output again, after every token has been checked.

    Raises:
      ConfigError: there is no output, or none with a manifest; what became of the records stands nowhere else.
      BeamPrepError: the manifest is not the one that `_SUCCESS` answers for, or a shard is not as it says. Then nothing
        is marked as finished that was not so before.
    """
    finish_publication(output)
    manifest = read_manifest(output)
    data, success = storage.read_bytes(storage.join(output, MANIFEST)), storage.join(output, SUCCESS)
    mark = success_mark(manifest.fingerprint, data)
    if storage.exists(success) and storage.read_bytes(success) != mark:
        raise BeamPrepError(
            f"{output}: {MANIFEST} is not the one that {SUCCESS} answers for; if it is the right one, delete {SUCCESS}"
        )
    for name, entry in manifest.outputs.items():
        folder = storage.join(output, name)
        paths, sequences = [s.path for s in entry.shards], [s.sequences for s in entry.shards]
        views = fitting([*entry.views, *present_views(folder)], entry.context_length)
        write_index(folder, paths, sequences, 4 * entry.context_length)
        for length in views:
            write_view(folder, paths, sequences, entry.context_length, length)
    findings = verify_against(output, manifest)
    if findings:
        place, problem = findings[0]
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise BeamPrepError(f"{output}/{place}: {problem}{more}; the job has to be run again")
    spec = tokenizer_of(manifest)
    if spec is not None:
        try_report(output, data, spec)
    storage.write_bytes(success, [mark])
    return manifest
