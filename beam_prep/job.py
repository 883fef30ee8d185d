"""The job: everything a run's steps need to know, small enough to travel with each of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from beam_prep import __version__, catalog
from beam_prep.carrier import Carrier
from beam_prep.config import Config
from beam_prep.dedup import KEY_RANGES
from beam_prep.errors import ConfigError
from beam_prep.generations import label
from beam_prep.outputs import Output, outputs_of
from beam_prep.runs import TokenLimits
from beam_prep.templates import Template, compile_template
from beam_prep.tokenizer import TokenizerSpec

FORMAT = 1
"""Version of the output's layout; part of the fingerprint."""


class Source(NamedTuple):
    """A dataset of the configuration, resolved."""

    name: str
    patterns: tuple[str, ...]
    template: Template
    """With the dataset's own filter over the template's."""
    max_rejects: float


class Base(NamedTuple):
    """A finished output that a run adds a generation to."""

    fingerprint: str
    generations: int
    """That it has."""


class Job(NamedTuple):
    """A resolved configuration."""

    config: Config
    output: str
    sources: tuple[Source, ...]
    outputs: tuple[Output, ...]
    tokenizer: TokenizerSpec
    fingerprint: str
    carrier: Carrier
    encoders: int = 1
    """Threads that encode in each worker process."""
    run_bytes: int | None = None
    """Tokens that a worker holds before it hands them on; None for the usual."""
    key_ranges: int = KEY_RANGES
    recipe: str = ""
    """See `recipe`."""
    base: Base | None = None
    """The output as it is, if this run adds to it."""

    @property
    def label(self) -> str:
        """What the names of this run's files hold; empty for the first generation. See `generations.label`."""
        return label(self.base.generations, self.fingerprint) if self.base is not None else ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(source.name for source in self.sources)

    @property
    def limits(self) -> tuple[TokenLimits, ...]:
        """Token limits of the sources."""
        filters = [source.template.filter for source in self.sources]
        return tuple(
            TokenLimits(f.min_tokens or 0, f.max_tokens if f.max_tokens is not None else 2**31) for f in filters
        )

    def core(self) -> Job:
        """The job without what is most of it and few steps need: templates (not their filters), patterns, datasets.

        Every step of the graph holds one, and a graph must stay small, however many sources there are.
        """
        sources = tuple(
            source._replace(patterns=(), template=Template.model_construct(filter=source.template.filter))
            for source in self.sources
        )
        return self._replace(config=self.config.model_copy(update={"datasets": [], "stages": None}), sources=sources)


def resolve_sources(config: Config, tokenizer: TokenizerSpec, base: Path | None) -> tuple[Source, ...]:
    """The sources of a configuration, their templates found and tried.

    Raises:
      ConfigError: lists every template that is missing or wrong.
    """
    sources, problems = [], []
    special = [token for token, _ in tokenizer.special_tokens]
    for dataset in config.datasets:
        try:
            template = catalog.resolve(dataset, base)
            own = {"purpose": dataset.purpose} if dataset.purpose is not None else {}
            template = template.model_copy(update={"filter": dataset.filter.over(template.filter), **own})
            compile_template(template, special)
        except ConfigError as error:
            problems.append(error.message)
            continue
        limit = config.max_rejects if dataset.max_rejects is None else dataset.max_rejects
        sources.append(Source(dataset.name, tuple(dataset.input), template, limit))
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(sources)


def _content(
    config: Config, sources: tuple[Source, ...], outputs: tuple[Output, ...], tokenizer: TokenizerSpec
) -> dict[str, Any]:
    """What decides an output's bytes, but for the inputs and the version of this program."""
    asked = config.model_dump(mode="json", include={"seed", "tail", "dedup"})
    return {
        "format": FORMAT,
        "asked": asked,
        "sources": [
            {
                "name": source.name,
                "template": source.template.model_dump(mode="json", exclude={"example", "about"}),
            }
            for source in sources
        ],
        "outputs": outputs,
        "tokenizer": tokenizer.sha256,
    }


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fingerprint(
    config: Config,
    sources: tuple[Source, ...],
    outputs: tuple[Output, ...],
    tokenizer: TokenizerSpec,
    inputs: str,
) -> str:
    """A hash of everything that decides an output's bytes. `inputs`: signature of the input files."""
    return _hash({**_content(config, sources, outputs, tokenizer), "version": __version__, "inputs": inputs})


def recipe(config: Config, sources: tuple[Source, ...], outputs: tuple[Output, ...], tokenizer: TokenizerSpec) -> str:
    """A hash of what all generations of an output have in common: everything but the inputs and the version."""
    return _hash(_content(config, sources, outputs, tokenizer))


def make_job(
    config: Config,
    sources: tuple[Source, ...],
    tokenizer: TokenizerSpec,
    inputs: str,
    work: str | None,
    encoders: int = 1,
    run_bytes: int | None = None,
    key_ranges: int = KEY_RANGES,
    base: Base | None = None,
) -> Job:
    """Joins everything. `work`: folder of the file carrier, None for the engine's shuffle; `base`: see `Job`.

    Raises:
      ConfigError: the datasets do not fit the stages.
    """
    outputs = outputs_of(config, [source.template.purpose for source in sources])
    if base is not None:
        inputs = f"{base.fingerprint}\0{inputs}"
    return Job(
        config,
        config.output,
        sources,
        outputs,
        tokenizer,
        fingerprint(config, sources, outputs, tokenizer, inputs),
        Carrier(work),
        encoders,
        run_bytes,
        key_ranges,
        recipe(config, sources, outputs, tokenizer),
        base,
    )
