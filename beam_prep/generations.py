"""Generations: an output that grows. The first run makes generation 0, each increment adds one.

A generation is what one run makes of the input files that the ones before had not seen: shards, sidecars, rejected
records and a list of its inputs, under names that hold its label. No file of an earlier generation is ever touched. The
manifest lists the shards of all generations, one after the other; its figures are sums, and `generations` holds the
figures of each (left out while there is only one, whose figures are the sums).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_prep.manifest import Manifest

_LABEL = r"\d{5}-[0-9a-f]{8}"
_LABELLED = re.compile(
    rf"(?:.+/[^/]+/part-g({_LABEL})-\d{{5}}-of-\d{{5}}|rejected/.+-({_LABEL})|inputs/({_LABEL}))"
    r"\.[a-z.]+(?:\.[0-9a-f]{8}\.tmp)?"
)
_SUMS = ("sequences", "tokens", "padding", "dropped_tokens", "cut_documents")
_SOURCE_SUMS = ("documents", "available", "copies", "tokens")


def label(number: int, fingerprint: str) -> str:
    """What the names of a generation's files hold, as `00001-3f2a9c1d`.

    The fingerprint keeps the files of an increment that never finished apart from those of the next one, which may
    have other inputs, and its shards as many.
    """
    return f"{number:05d}-{fingerprint[:8]}"


def label_of(path: str) -> str | None:
    """The label in the name of a file (path relative to the run's folder), or None: it is of no later generation."""
    found = _LABELLED.fullmatch(path)
    return next(filter(None, found.groups())) if found else None


def is_of(path: str, number: int) -> bool:
    """Whether a file's name says that it belongs to generation `number` (of at least 1)."""
    return (label_of(path) or "").startswith(f"{number:05d}-")


def finished_labels(manifest: Mapping[str, Any]) -> set[str]:
    """The labels of the generations that a manifest holds."""
    generations = manifest.get("generations") or []
    return {label(number, generation["fingerprint"]) for number, generation in enumerate(generations) if number}


def merged(base: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an output with one more generation.

    Args:
      base: the manifest so far, of at least one generation.
      added: the manifest that the new generation would have alone.
    """
    before = list(base["generations"])
    if len(before) == 1:
        before = [{**before[0], **_figures(base)}]
    generations = [*before, {**added["generations"][0], **_figures(added)}]
    outputs = {}
    for name, entry in added["outputs"].items():
        figures = summed_output([generation["outputs"][name] for generation in generations])
        shards = [*base["outputs"][name]["shards"], *entry["shards"]]
        outputs[name] = {**figures, "views": entry["views"], "shards": shards}
    return {
        **added,
        "outputs": outputs,
        "ledger": summed_ledger([generation["ledger"] for generation in generations]),
        "rejected_files": [*base["rejected_files"], *added["rejected_files"]],
        "generations": generations,
    }


def _figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `generations` holds of a generation, from the manifest that it has alone."""
    outputs = {}
    for name, entry in manifest["outputs"].items():
        figures = {key: value for key, value in entry.items() if key not in ("shards", "views")}
        outputs[name] = {**figures, "shards": len(entry["shards"])}
    rejected = {"rejected_files": manifest["rejected_files"]}
    return {"outputs": outputs, "ledger": manifest["ledger"], **rejected}


def summed_output(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of an output over its generations: sums, and what follows from them."""
    total = {key: sum(part[key] for part in parts) for key in _SUMS}
    names = dict.fromkeys(name for part in parts for name in part["sources"])
    sources = {}
    for name in names:
        own = [part["sources"][name] for part in parts if name in part["sources"]]
        sums = {key: sum(part[key] for part in own) for key in _SOURCE_SUMS}
        sources[name] = {
            **sums,
            "share": sums["tokens"] / total["tokens"] if total["tokens"] else 0.0,
            "epochs": sums["copies"] / sums["available"] if sums["available"] else 0.0,
            "asked_epochs": own[0]["asked_epochs"],
        }
    positions = total["sequences"] * parts[0]["context_length"]
    copies = sum(source["copies"] for source in sources.values())
    return {
        "context_length": parts[0]["context_length"],
        "packing": parts[0]["packing"],
        **total,
        "fill": total["tokens"] / positions if positions else 0.0,
        "cut_share": total["cut_documents"] / copies if copies else 0.0,
        "sources": sources,
    }


def summed_ledger(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ledger over all generations."""
    return {name: _sum([part[name] for part in parts]) for name in parts[-1]}


def _sum(parts: Sequence[Any]) -> Any:
    """Sums of numbers, key by key in mappings of them."""
    if not isinstance(parts[0], Mapping):
        return sum(parts)
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: _sum([part[key] for part in parts if key in part]) for key in keys}


def split(manifest: Manifest) -> list[Manifest]:
    """The manifest that each generation would have alone; of a single one, the manifest itself.

    Its generations must fit it; see `generation_checks.check_generations`.
    """
    if len(manifest.generations) < 2:
        return [manifest]
    firsts = dict.fromkeys(manifest.outputs, 0)
    found = []
    for generation in manifest.generations:
        outputs = {}
        for name, entry in manifest.outputs.items():
            figures = generation.outputs[name]
            first = firsts[name]
            firsts[name] += figures.shards
            own = {key: getattr(figures, key) for key in type(figures).model_fields if key != "shards"}
            outputs[name] = entry.model_copy(update={**own, "shards": entry.shards[first : firsts[name]]})
        update = {
            "fingerprint": generation.fingerprint,
            "outputs": outputs,
            "ledger": generation.ledger,
            "rejected_files": generation.rejected_files,
            "generations": [generation],
        }
        found.append(manifest.model_copy(update=update))
    return found
