"""Rendering the dead letters of a run once more, after a fix, to see what is left."""

from __future__ import annotations

import base64
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson

from beam_prep import storage
from beam_prep.config import Config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.job import Source
from beam_prep.layout import REJECTED_FOLDER
from beam_prep.reading import RecordBatch
from beam_prep.templates import compile_template
from beam_prep.transform import TOO_LONG, Transformer, compile_transformer, transform_batch


@dataclass
class Retried:
    """What became of a dataset's dead letters. `letters` = rendered + filtered + still rejected."""

    dataset: str
    letters: int = 0
    before: Counter = field(default_factory=Counter)
    """Reasons in the dead letters."""
    rendered: int = 0
    filtered: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    """Reasons that are left."""
    first: dict[str, str] = field(default_factory=dict)
    """For each reason that is left: place and message of the first record."""


def read_dead_letters(output: str, dataset: str) -> Iterator[dict]:
    """The dead letters of a dataset, each as a JSON object (`file`, `offset`, `reason`, `raw` or `raw_base64` …).

    Raises:
      BeamPrepError: a file of them is damaged.
    """
    own = re.compile(rf".*/{re.escape(dataset)}-\d{{5}}(-[0-9a-f]{{8}})?\.jsonl\.gz")  # not those of {dataset}-2
    for found in storage.match(storage.join(output, REJECTED_FOLDER, f"{dataset}-[0-9]*.jsonl.gz")):
        if not own.fullmatch(found.path):
            continue
        try:
            with storage.open_read(found.path) as file, gzip.open(file) as lines:
                yield from map(orjson.loads, lines)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise BeamPrepError(
                f"{found.path}: cannot be read ({error}); run the job again to write it anew"
            ) from error


def retry(config: Config, sources: Sequence[Source], special_tokens: Sequence[str], output: str) -> list[Retried]:
    """Renders every dead letter below `output` with the configuration as it is now.

    Args:
      special_tokens: the tokenizer's.

    Raises:
      ConfigError: there are no dead letters at all.
    """
    results = []
    for number, source in enumerate(sources):
        template = source.template
        own_code = template.function is not None or template.prepare is not None
        transformer = compile_transformer(
            compile_template(template, special_tokens), template.filter, config.seed, own_code
        )
        result = Retried(source.name)
        for letter in read_dead_letters(output, source.name):
            _retry_one(letter, number, transformer, result)
        if result.letters:
            results.append(result)
    if not results:
        raise ConfigError(
            f"{output}: no rejected records of these datasets in {REJECTED_FOLDER}/; nothing to render again"
        )
    return results


def _retry_one(letter: dict, source: int, transformer: Transformer, result: Retried) -> None:
    raw = letter["raw"].encode() if "raw" in letter else base64.b64decode(letter["raw_base64"])
    result.letters += 1
    result.before[letter["reason"]] += 1
    if letter["reason"] == TOO_LONG:  # only its beginning is here
        result.rejected[TOO_LONG] += 1
        result.first.setdefault(TOO_LONG, f"{letter['file']}, byte {letter['offset']}: {letter['message']}")
        return
    offsets = np.array([letter["offset"]], np.uint64)
    batch = transform_batch(RecordBatch(source, "", True, 0, letter["file"], [raw], offsets), transformer)
    result.rendered += batch.tally.rendered
    result.filtered.update(batch.tally.filtered)
    result.rejected.update(batch.tally.rejected)
    for reject in batch.rejects:
        result.first.setdefault(reject.reason, f"{reject.path}, byte {reject.offset}: {reject.message}")
