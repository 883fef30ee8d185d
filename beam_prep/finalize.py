"""Finalize: hold every shard against its record, close the ledger, write index and manifest, and `_SUCCESS` last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beam_prep import __version__, storage
from beam_prep.balance import Plan
from beam_prep.buckets import PackedShard
from beam_prep.errors import BeamPrepError
from beam_prep.index import write_index
from beam_prep.inputs import describe_inputs
from beam_prep.job import Job
from beam_prep.layout import MANIFEST, SUCCESS
from beam_prep.place import PlacedTally
from beam_prep.progress import snapshot
from beam_prep.publish import add_generation, manifest_bytes
from beam_prep.run_file import keep_step_times, step_times
from beam_prep.shards import ShardRecord, write_shard
from beam_prep.success import success_mark
from beam_prep.views import fitting, write_view


def finalize(
    job: Job, plan: Plan, placed: Sequence[PlacedTally], shards: Sequence[ShardRecord], rejected_files: Sequence[str]
) -> dict[str, Any]:
    """Writes everything that makes the shards an output; returns the manifest.

    Raises:
      BeamPrepError: a shard is missing or differs, or the ledger does not add up; nothing is marked as finished then.
    """
    # A runner may hand over a side input twice (FnApiRunner does, for stages that run in several bundles).
    shards, placed = sorted(set(shards)), sorted(set(placed))
    ledger = close_ledger(job, plan, placed, shards)
    outputs = {}
    for number, planned in enumerate(plan.outputs):
        own = [shard for shard in shards if shard.output == number]
        folder = storage.join(job.output, planned.output.name)
        # Few new files may hold nothing for an output; then it gets no shard.
        buckets = planned.buckets if planned.tokens or job.base is None else 0
        own = sorted([*own, *_empty_shards(job, number, buckets, own)])
        check_shards(folder, own, buckets)
        length = planned.output.context_length
        outputs[planned.output.name] = _describe_output(job, plan, number, own)
        if job.base is not None:
            continue
        if not any(s.sequences for s in own):
            raise BeamPrepError(
                f"output {planned.output.name!r}: its {planned.tokens:,} tokens fill no sequence of {length:,}, "
                "and `tail: drop` leaves no sequence; use `tail: pad` or a shorter context_length"
            )
        write_index(folder, [s.path for s in own], [s.sequences for s in own], 4 * length)
        for view in fitting(job.config.views, length):
            write_view(folder, [s.path for s in own], [s.sequences for s in own], length, view)
    manifest = build_manifest(job, outputs, ledger, rejected_files)
    if job.carrier.work:
        keep_step_times(job.output, step_times(snapshot(job.carrier.work)))
    if job.base is not None:
        return add_generation(job.output, job.base.fingerprint, manifest, job.tokenizer)
    data = manifest_bytes(manifest)
    storage.write_bytes(storage.join(job.output, MANIFEST), [data])
    from beam_prep.report import try_report  # which reads manifests, and so needs this module

    try_report(job.output, data, job.tokenizer)
    storage.write_bytes(storage.join(job.output, SUCCESS), [success_mark(job.fingerprint, data)])
    return manifest


def _empty_shards(job: Job, number: int, buckets: int, written: Sequence[ShardRecord]) -> list[ShardRecord]:
    """Writes the shards of buckets that no document fell into, so that no number is missing.

    They hold nothing, which is certain: the ledger has just found every token in the other ones.
    """
    output = job.outputs[number]
    return [
        write_shard(
            storage.join(job.output, output.name),
            PackedShard(number, bucket, 0, b"", b"", (), 0),
            buckets,
            output.context_length,
            job.tokenizer.eod_token_id,
            job.names,
            job.label,
        )
        for bucket in sorted(set(range(buckets)) - {shard.bucket for shard in written})
    ]


def check_shards(folder: str, shards: Sequence[ShardRecord], buckets: int) -> None:
    """Checks that every bucket has its shard, of the size that was written.

    Raises:
      BeamPrepError: names what is off.
    """
    missing = sorted(set(range(buckets)) - {s.bucket for s in shards})
    if missing or len(shards) != buckets:
        raise BeamPrepError(f"{folder}: buckets {missing[:5]} of {buckets} have no shard; run the job again")
    sizes = storage.sizes(folder, [path for shard in shards for path in (shard.path, shard.documents_path)])
    for shard in shards:
        path, size = storage.join(folder, shard.path), sizes[shard.path]
        if size != shard.bytes:
            raise BeamPrepError(f"{path}: {size} bytes on disk, {shard.bytes} were written; run the job again")
        if sizes[shard.documents_path] is None:
            raise BeamPrepError(f"{folder}/{shard.documents_path}: is missing; run the job again")


def close_ledger(
    job: Job, plan: Plan, placed: Sequence[PlacedTally], shards: Sequence[ShardRecord]
) -> dict[str, dict[str, Any]]:
    """The ledger by source.

    Raises:
      BeamPrepError: records or tokens do not add up, which is a defect of this program or of the storage.
    """
    ledger = {}
    for number, name in enumerate(job.names):
        tally = plan.tallies[number]
        own = [p for p in placed if p.source == number]
        entry = {
            "records": tally["records"],
            "rejected": tally["rejected"],
            "filtered": tally["filtered"],
            "duplicates": sum(p.duplicates for p in own),
            "sampled_out": sum(p.sampled_out for p in own),
            "documents": sum(p.documents for p in own),
            "tokens": sum(s.source_tokens[number] for s in shards),
            "blank_lines": tally["blank_lines"],
            "bytes": tally["bytes"],
            "skipped_turns": tally["skipped_turns"],
        }
        ends = (
            sum(entry["rejected"].values())
            + sum(entry["filtered"].values())
            + entry["duplicates"]
            + entry["sampled_out"]
            + entry["documents"]
        )
        _must_equal(f"records of {name!r}", entry["records"], ends)
        _must_equal(f"duplicates of {name!r}", plan.duplicates[number], entry["duplicates"])
        ledger[name] = entry
    for number, planned in enumerate(plan.outputs):
        written = [s for s in shards if s.output == number]
        in_shards = sum(sum(s.source_tokens) + s.dropped_tokens for s in written)
        _must_equal(f"tokens of {planned.output.name!r}", sum(p.tokens[number] for p in placed), in_shards)
        _must_equal(f"planned tokens of {planned.output.name!r}", planned.tokens, in_shards)
        positions = sum(s.sequences for s in written) * planned.output.context_length
        filled = sum(sum(s.source_tokens) + s.padding for s in written)
        _must_equal(f"positions of {planned.output.name!r}", positions, filled)
    return ledger


def _must_equal(what: str, expected: int, found: int) -> None:
    if expected != found:
        raise BeamPrepError(
            f"the ledger does not add up: {what}: {expected} went in, {found} came out; "
            "the output is not marked as finished. This is a defect: please report it with the configuration"
        )


def _describe_output(job: Job, plan: Plan, number: int, shards: Sequence[ShardRecord]) -> dict[str, Any]:
    planned = plan.outputs[number]
    tokens = sum(sum(s.source_tokens) for s in shards)
    sources = {}
    for index, name in enumerate(job.names):
        own = sum(s.source_tokens[index] for s in shards)
        if not planned.documents[index] and not own:
            continue
        available = planned.source_tokens[index]
        asked = planned.shares[index].asked
        copies = sum(s.source_copies[index] for s in shards)
        sources[name] = {
            "documents": sum(s.source_documents[index] for s in shards),
            "available": planned.documents[index],
            "copies": copies,
            "tokens": own,
            "share": own / tokens if tokens else 0.0,
            "epochs": _epochs(asked is None, own, available, copies, planned.documents[index]),
            **({"asked_epochs": planned.output.epochs[index]} if asked is None else {"asked_share": asked}),
        }
    sequences, copies = sum(s.sequences for s in shards), sum(sum(s.source_copies) for s in shards)
    cut = sum(s.cut for s in shards)
    return {
        "context_length": planned.output.context_length,
        "packing": planned.output.packing,
        "views": fitting(job.config.views, planned.output.context_length),
        "sequences": sequences,
        "tokens": tokens,
        "padding": sum(s.padding for s in shards),
        "dropped_tokens": sum(s.dropped_tokens for s in shards),
        "fill": tokens / (sequences * planned.output.context_length) if sequences else 0.0,
        "cut_documents": cut,
        "cut_share": cut / copies if copies else 0.0,
        "sources": sources,
        "shards": [
            {
                "path": s.path,
                "sequences": s.sequences,
                "bytes": s.bytes,
                "sha256": s.sha256,
                "documents": s.documents_path,
                "documents_sha256": s.documents_sha256,
                "spans": s.spans,
            }
            for s in shards
        ],
    }


def _epochs(by_documents: bool, tokens: int, available: int, copies: int, documents: int) -> float:
    """How often a source is seen: counted in documents where `epochs` decide (not all are encoded), else in tokens."""
    seen, there = (copies, documents) if by_documents else (tokens, available)
    return seen / there if there else 0.0


def build_manifest(
    job: Job, outputs: dict[str, Any], ledger: dict[str, Any], rejected_files: Sequence[str]
) -> dict[str, Any]:
    """The manifest. It holds no time and no place of the run, so that equal runs give equal manifests."""
    spec = job.tokenizer
    return {
        "version": __version__,
        "fingerprint": job.fingerprint,
        "tokenizer": {
            "name": spec.name,
            "sha256": spec.sha256,
            "eod_token_id": spec.eod_token_id,
            "vocab_size": spec.vocab_size,
        },
        "dtype": "uint32",
        "context_length": job.config.context_length,
        "seed": job.config.seed,
        "configuration": job.config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"output"}),
        "licences": {s.name: s.template.licence for s in job.sources},
        "outputs": outputs,
        "ledger": ledger,
        "rejected_files": sorted(rejected_files),
        "recipe": job.recipe,
        "generations": [
            {
                "fingerprint": job.fingerprint,
                "version": __version__,
                "inputs": describe_inputs(job.output, job.label),
            }
        ],
    }
