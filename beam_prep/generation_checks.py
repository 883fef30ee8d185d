"""The part of verify that is about generations: they make up the whole, and their inputs are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.findings import Figures, Finding, read_if_there
from beam_prep.generations import is_of, label, label_of, summed_ledger, summed_output
from beam_prep.inputs import describe_inputs, inputs_path
from beam_prep.layout import MANIFEST, NEXT, WORK_FOLDER
from beam_prep.manifest import Manifest
from beam_prep.output_folder import LOCK, TORN, claimed_generation


def check_generations(manifest: Manifest) -> list[Finding]:
    """The figures of the generations add up to those of the whole, and shards bear the names of their generations.

    If nothing is found, `generations.split` takes the manifest apart.
    """
    generations = manifest.generations
    check = Figures(f"{MANIFEST}: generations")
    if generations:
        check.equal("the last fingerprint", generations[-1].fingerprint, manifest.fingerprint, "in `fingerprint`")
    if len(generations) < 2:
        return check.findings
    for number, generation in enumerate(generations):
        check.equal(f"{number}: outputs", sorted(generation.outputs), sorted(manifest.outputs), "in `outputs`")
        check.equal(f"{number}: sources", list(generation.ledger), list(manifest.ledger), "in `ledger`")
    if check.findings:
        return check.findings
    for name, entry in manifest.outputs.items():
        counts = [generation.outputs[name].shards for generation in generations]
        check.equal(f"shards of {name}", sum(counts), len(entry.shards), "in `outputs`")
        labels = [
            label(number, generation.fingerprint) if number else None
            for number, generation in enumerate(generations)
            for _ in range(counts[number])
        ]
        for shard, wanted in zip(entry.shards, labels, strict=False):
            for path in (shard.path, shard.documents):
                if label_of(f"{name}/{path}") != wanted:
                    check.add(f"{name}/{path} does not bear the name of its generation")
        parts = [generation.outputs[name].model_dump() for generation in generations]
        try:
            _compare(check, f"outputs.{name}", entry.model_dump(), summed_output(parts))
        except (KeyError, TypeError) as error:  # a key that may be left out, but not here
            check.add(f"outputs.{name}: figures are missing ({error})")
    ledgers = [{n: e.model_dump() for n, e in generation.ledger.items()} for generation in generations]
    _compare(check, "ledger", {n: e.model_dump() for n, e in manifest.ledger.items()}, summed_ledger(ledgers))
    files = [path for generation in generations for path in generation.rejected_files]
    check.equal("rejected_files", files, manifest.rejected_files, "in the whole")
    return check.findings


def _compare(check: Figures, place: str, stated: Mapping[str, Any], summed: Mapping[str, Any]) -> None:
    for key, value in summed.items():
        found = stated.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            _compare(check, f"{place}.{key}", found, value)
            for more in sorted(set(found) - set(value)):
                if found[more]:
                    check.add(f"{place}.{key}.{more} is in no generation")
        else:
            check.equal(f"{place}.{key}", found, value, "over its generations")


def check_inputs(output: str, manifest: Manifest) -> list[Finding]:
    """The lists of inputs are those that were written."""
    findings = []
    for number, generation in enumerate(manifest.generations):
        own = label(number, generation.fingerprint) if number else ""
        stated, path = generation.inputs, inputs_path(own)
        if stated.path != path:
            findings.append(Finding(f"{MANIFEST}: generations.{number}", f"inputs.path is {stated.path}, not {path}"))
        elif read_if_there(storage.join(output, path)) is None:
            findings.append(Finding(path, "is missing"))
        else:
            try:
                found = describe_inputs(output, own)
            except BeamPrepError as error:
                findings.append(Finding(path, error.message))
                continue
            check = Figures(path)
            for key in ("sha256", "files", "bytes"):
                check.equal(key, found[key], getattr(stated, key), f"in {MANIFEST}")
            findings += check.findings
    return findings


def check_publication(output: str, paths: Sequence[str]) -> list[Finding]:
    """No increment was killed, or is at work, between its last shard and its end."""
    if NEXT not in paths or read_if_there(storage.join(output, NEXT)) == read_if_there(storage.join(output, MANIFEST)):
        return []
    return [Finding(NEXT, "an increment is being added just now, or was killed then: give the same command again")]


def is_unfinished(output: str, manifest: Manifest, paths: Sequence[str]) -> set[str]:
    """Those of the files of an output (relative to it) that an increment has made that has not finished, or not yet.

    It may be at work; or it was killed, and the next one goes on with them or deletes them.
    """
    number = max(1, len(manifest.generations))
    claimed = claimed_generation(output) in (number, number - 1)  # the last one may have been killed at its very end
    ours = {NEXT, f"{WORK_FOLDER}/{LOCK}"} | {path for path in paths if is_of(path, number)}
    if claimed:
        ours |= {path for path in paths if path.startswith(f"{WORK_FOLDER}/") or TORN.fullmatch(path)}
    return ours
