"""The main job: raw records of several sources in, packed and indexed sequences out.

    per source:  Read → Transform → Mix ─┐
                                         Flatten → Tokenize ─┬→ Deduplicate → Balance ─┐ (counts and plan)
                                                             └→ Place ←────────────────┘
                                                                  └→ Pack → Write → Finalize

A run that adds to an output (an increment) also reads the ids of the documents that are there, for Deduplicate.

`python -m pipelines.prepare --config CONFIG [--KEY VALUE] [any Beam option]` is `beam-prep run CONFIG …`, and what
Dataflow's launcher calls: nothing is done after the graph has been handed over.
"""

from __future__ import annotations

import sys
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.typehints import KV
from apache_beam.typehints import Any as AnyType

from beam_prep import output_steps as o
from beam_prep import source_steps as s
from beam_prep.batch_coder import DocumentBatch, RecordBatch
from beam_prep.dedup import slice_run
from beam_prep.job import Job
from beam_prep.runner import FOLD_FROM, FOLD_TO
from beam_prep.runs import Run


def build(pipeline: beam.Pipeline, job: Job) -> beam.PCollection:
    """Adds the whole job to a pipeline; the result is one element, the fingerprint of the finished output."""
    units = (
        pipeline
        | "Sources" >> beam.Create(range(len(job.sources)))
        | "Match" >> beam.ParDo(s.Match(job))
        | "Split" >> beam.ParDo(s.Split(job))
        | "Distribute" >> beam.Reshuffle()
    )
    by_source = units | FOLD_FROM >> beam.Partition(lambda unit, _: unit[0], len(job.sources))
    documents = [
        by_source[number]
        | f"Read {name}" >> beam.ParDo(s.Read(job.carrier)).with_output_types(RecordBatch)
        | f"Transform {name}" >> beam.ParDo(s.Transform(job, number)).with_output_types(DocumentBatch)
        | f"Mix {name}" >> beam.ParDo(s.Mix(job, number)).with_output_types(DocumentBatch)
        for number, name in enumerate(job.names)
    ]
    tokenized = (
        documents
        | FOLD_TO >> beam.Flatten()
        | "Tokenize"
        >> beam.ParDo(s.Tokenize(job)).with_outputs(s.Tokenize.RUNS, s.Tokenize.REJECTS, s.Tokenize.TALLIES)
    )
    runs = _keyed(tokenized[s.Tokenize.RUNS], str)
    rejected = (
        _keyed(tokenized[s.Tokenize.REJECTS], int)
        | "Collect rejected" >> beam.GroupByKey()
        | "Write rejected" >> beam.ParDo(s.WriteRejected(job))
    )
    slices = runs | "By key range" >> beam.FlatMap(
        lambda run, ranges: slice_run(Run(*run[1]), ranges), job.key_ranges
    ).with_output_types(KV[int, AnyType])
    if job.base is not None and job.config.dedup == "exact":
        there = (
            pipeline
            | "Start seen" >> beam.Create([None])
            | "Sidecars" >> beam.ParDo(o.Sidecars(job)).with_output_types(str)
            | "Distribute sidecars" >> beam.Reshuffle()
            | "Seen" >> beam.ParDo(o.Seen(job)).with_output_types(KV[int, AnyType])
        )
        slices = (slices, there) | "With seen" >> beam.Flatten()
    deduplicated = (
        slices
        | "Collect key range" >> beam.GroupByKey()
        | "Deduplicate" >> beam.ParDo(o.Deduplicate(job)).with_outputs(o.Deduplicate.COUNTS, main="duplicates")
    )
    counts = deduplicated[o.Deduplicate.COUNTS] | "Sum counts" >> beam.CombineGlobally(o.SumCounts(job))
    plan = (
        pipeline
        | "Start balance" >> beam.Create([None])
        | "Balance"
        >> beam.ParDo(
            o.Balance(job),
            AsSingleton(counts),
            AsIter(tokenized[s.Tokenize.TALLIES]),
            AsIter(rejected),
        )
    )
    placed = (
        {"runs": runs, "duplicates": _keyed(deduplicated.duplicates, str)}
        | "Join duplicates" >> beam.CoGroupByKey()
        | "Place"
        >> beam.ParDo(o.Place(job), AsSingleton(plan)).with_outputs(o.Place.BLOCKS, o.Place.LAST, o.Place.TALLIES)
    )
    records = [*_pack_and_write(placed, job, plan)] | "All shards" >> beam.Flatten()
    return (
        pipeline
        | "Start finalize" >> beam.Create([None])
        | "Finalize"
        >> beam.ParDo(
            o.Finalize(job), AsSingleton(plan), AsIter(placed[o.Place.TALLIES]), AsIter(records), AsIter(rejected)
        )
    )


def _pack_and_write(placed: Any, job: Job, plan: beam.PCollection) -> list[beam.PCollection]:
    """Packs every bucket; the last one of an output also takes the rests of the others."""
    tags = (o.Pack.SHARDS, o.Pack.REMAINDERS)
    packed = (
        _keyed(placed[o.Place.BLOCKS], int)
        | "Collect bucket" >> beam.GroupByKey()
        | "Pack" >> beam.ParDo(o.Pack(job, last=False)).with_outputs(*tags)
    )
    last = (
        _keyed(placed[o.Place.LAST], int),
        _keyed(packed[o.Pack.REMAINDERS], int),
    ) | "With remainders" >> beam.Flatten()
    packed_last = (
        _keyed(last, int)
        | "Collect last bucket" >> beam.GroupByKey()
        | "Pack last" >> beam.ParDo(o.Pack(job, last=True)).with_outputs(*tags)
    )
    written = []
    for label, shards in (("Write", packed[o.Pack.SHARDS]), ("Write last", packed_last[o.Pack.SHARDS])):
        if job.carrier.is_files:  # references only: spread the copying over all workers
            shards = shards | f"Distribute {label.lower()}" >> beam.Reshuffle()
        written.append(shards | label >> beam.ParDo(o.Write(job), AsSingleton(plan)))
    return written


def _keyed(elements: beam.PCollection, key: type) -> beam.PCollection:
    """Tells Beam that tagged elements are pairs, and what their keys are."""
    elements.element_type = KV[key, AnyType]
    return elements


if __name__ == "__main__":
    from beam_prep.launch import main

    sys.exit(main())
