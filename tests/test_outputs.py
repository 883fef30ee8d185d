"""Outputs: which documents of which sources belong where, and which wishes are refused before any work."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_prep.config import Config, parse_config
from beam_prep.errors import ConfigError
from beam_prep.job import Source, fingerprint, resolve_sources
from beam_prep.mix import document_ids, split_points
from beam_prep.outputs import Output, context_lengths, member, outputs_of
from beam_prep.runs import ENTRY
from beam_prep.tokenizer import TokenizerSpec

N = 20_000
IDS = document_ids([f"document {n}" for n in range(N)])
QWEN3_PURPOSES = {
    "S1": ["grammar", "knowledge", "dialogue"],
    "S2": ["reasoning", "procedural", "debugging", "agentic", "code", "rag_grounding"],
}


def config_of(purposes: dict[str, str | None], top: str, more: dict[str, str] | None = None) -> Config:
    """A configuration with one dataset a name."""
    lines = [
        f"  - {{name: {name}, text_field: text, input: x{f', purpose: {purpose}' if purpose else ''}"
        f"{(more or {}).get(name, '')}}}"
        for name, purpose in purposes.items()
    ]
    return parse_config("\n".join([top, "datasets:", *lines]))


def outputs_for(purposes: dict[str, str | None], top: str, more: dict[str, str] | None = None) -> tuple[Output, ...]:
    return outputs_of(config_of(purposes, top, more), list(purposes.values()))


def entries_of(chars: list[int], tokens: list[int]) -> np.ndarray:
    """`ENTRY[n]` of documents; tokens without their separators."""
    entries = np.zeros(len(chars), ENTRY)
    entries["chars"], entries["tokens"] = chars, np.array(tokens) + 1
    return entries


class TestSplits:
    """Named parts by content."""

    @given(parts=st.lists(st.integers(1, 50), min_size=1, max_size=6), numbers=st.randoms(use_true_random=False))
    def test_every_document_is_on_one_side_and_fractions_hold(self, parts: list[int], numbers: random.Random) -> None:
        fractions = [part / sum(parts) for part in parts]
        splits = ", ".join(f"p{n}: {fraction!r}" for n, fraction in enumerate(fractions))
        outputs = outputs_for({"a": None}, f"splits: {{{splits}}}")
        assert [output.name for output in outputs] == [f"p{n}" for n in range(len(parts))]
        entries = entries_of([9] * N, [3] * N)
        sides = np.stack([member(output, 0, entries, IDS) for output in outputs])
        assert (sides.sum(axis=0) == 1).all()
        for fraction, found in zip(fractions, sides.sum(axis=1).tolist(), strict=True):
            assert abs(found - fraction * N) <= 5 * (fraction * (1 - fraction) * N) ** 0.5 + 1
        order = numbers.sample(range(N), 100)
        assert (np.stack([member(o, 0, entries[order], IDS[order]) for o in outputs]) == sides[:, order]).all()

    def test_edges_follow_the_order_of_the_configuration(self) -> None:
        outputs = outputs_for({"a": None}, "splits: {train: 0.7, val: 0.2, test: 0.1}")
        assert [output.name for output in outputs] == ["train", "val", "test"]
        assert outputs[0].split[0] == 0.0
        assert outputs[-1].split[1] == 1.0
        assert [o.split[1] for o in outputs[:-1]] == [o.split[0] for o in outputs[1:]]
        assert outputs[0].split[1] == pytest.approx(0.7)
        points = split_points(IDS)
        assert (member(outputs[0], 0, entries_of([1] * N, [1] * N), IDS) == (points < outputs[0].split[1])).all()

    def test_growing_a_split_moves_documents_into_it_only(self) -> None:
        entries = entries_of([1] * N, [1] * N)
        small, large = (
            member(outputs_for({"a": None}, f"splits: {{train: {x}, val: {1 - x}}}")[0], 0, entries, IDS)
            for x in (0.5, 0.75)
        )
        assert (small <= large).all()

    def test_a_budget_is_divided_by_the_fractions(self) -> None:
        outputs = outputs_for(
            {"a": None}, "total_tokens: 1.7e9\nsplits: {train: 0.98, val: 0.02}", {"a": ", weight: 1"}
        )
        assert [output.total_tokens for output in outputs] == pytest.approx([1.7e9 * 0.98, 1.7e9 * 0.02])
        assert outputs_for({"a": None}, "", {"a": ", weight: 1"})[0].total_tokens is None


class TestMembers:
    """Limits of a stage."""

    @pytest.mark.parametrize(
        ("limits", "wanted"),
        [
            ({}, [True, True, True, True]),
            ({"min_chars": 10}, [False, True, True, True]),
            ({"min_chars": 11}, [False, False, True, True]),
            ({"min_tokens": 5}, [False, True, True, False]),
            ({"min_tokens": 6}, [False, False, True, False]),
            ({"min_chars": 11, "min_tokens": 5}, [False, False, True, False]),
        ],
    )
    def test_least_sizes(self, limits: dict[str, int], wanted: list[bool]) -> None:
        """The separator is no token of a document."""
        entries = entries_of([9, 10, 11, 5000], [4, 5, 6, 1])
        output = Output("o", 8, (0.0, 1.0), (1.0,), **limits)
        assert member(output, 0, entries, IDS[:4]).tolist() == wanted

    def test_no_epochs_no_documents_and_a_weight_is_no_zero(self) -> None:
        output = Output("o", 8, (0.0, 1.0), (0.0, None, 0.5), (0.0, 1.0, 0.0))
        entries = entries_of([1] * 4, [1] * 4)
        assert [member(output, source, entries, IDS[:4]).sum() for source in range(3)] == [0, 4, 4]


class TestStages:
    """Stages as outputs."""

    def test_qwen3(self) -> None:
        purposes: dict[str, str | None] = {p: p for own in QWEN3_PURPOSES.values() for p in own}
        outputs = outputs_for(purposes, "stages: qwen3\nsplits: {train: 0.9, val: 0.1}")
        assert [o.name for o in outputs] == [f"{s}/{x}" for s in ("S1", "S2", "S3") for x in ("train", "val")]
        assert [o.context_length for o in outputs] == [4096] * 4 + [32_768] * 2
        assert [o.min_chars for o in outputs] == [0] * 4 + [32_000] * 2
        for output in outputs:
            wanted = QWEN3_PURPOSES.get(output.name.split("/")[0], list(purposes))
            assert [p for p, e in zip(purposes, output.epochs, strict=True) if e] == [
                p for p in purposes if p in wanted
            ]
            assert set(output.epochs) <= {0.0, 1.0}
        assert {o.stage for o in outputs} == {"S1", "S2", "S3"}

    def test_ones_own(self) -> None:
        top = """
context_length: 128
total_tokens: 5000
max_epochs: 4
packing: best_fit
stages:
  - {name: all}
  - {name: code, purposes: [code], context_length: 64, min_tokens: 7, total_tokens: 100, packing: concat}
  - {name: picked, datasets: [c, a], max_epochs: 2}
  - {name: shares, datasets: {b: {weight: 2}, c: {epochs: 0.5}}, min_chars: 9}
"""
        purposes = {"a": "code", "b": "grammar", "c": None}
        more = {"a": ", weight: 1", "b": ", epochs: 2", "c": ", weight: 3"}
        all_, code, picked, shares = outputs_for(purposes, top, more)
        assert (all_.epochs, all_.weights) == ((None, 2.0, None), (1.0, 0.0, 3.0))
        assert (all_.context_length, all_.total_tokens, all_.max_epochs, all_.packing) == (128, 5000, 4, "best_fit")
        assert (code.epochs, code.weights) == ((None, 0.0, 0.0), (1.0, 0.0, 0.0))
        assert (code.context_length, code.total_tokens, code.min_tokens, code.packing) == (64, 100, 7, "concat")
        assert (picked.epochs, picked.weights, picked.max_epochs) == ((None, 0.0, None), (1.0, 0.0, 3.0), 2)
        assert (shares.epochs, shares.weights, shares.min_chars) == ((0.0, None, 0.5), (0.0, 2.0, 0.0), 9)
        assert [o.named for o in (all_, code, picked, shares)] == [False, False, True, True]
        assert [o.stage for o in (all_, code, picked, shares)] == ["all", "code", "picked", "shares"]

    def test_without_stages(self) -> None:
        (output,) = outputs_for({"a": None, "b": None}, "", {"b": ", epochs: 0"})
        assert (output.name, output.stage, output.named) == ("train", "", False)
        assert output.epochs == (1.0, 0.0)

    def test_context_lengths(self) -> None:
        assert context_lengths(config_of({"a": None}, "context_length: 99")) == [99]
        assert context_lengths(config_of({"a": "code"}, "stages: qwen3")) == [4096, 32_768]
        own = "context_length: 7\nstages: [{name: a, context_length: 5}, {name: b}, {name: c, context_length: 5}]"
        assert context_lengths(config_of({"a": None}, own)) == [5, 7]

    @pytest.mark.parametrize(
        ("purposes", "top", "more", "parts"),
        [
            ({"a": "grammar"}, "stages: qwen3", {}, ["'S2'", "no dataset", "reasoning, procedural"]),
            ({"a": "grammar", "b": "code", "c": None}, "stages: qwen3", {}, ["'c'", "purpose", "it has none"]),
            ({"a": "grammar", "b": "code", "c": "gramar"}, "stages: qwen3", {}, ["'c'", "'gramar' is in none"]),
            ({"a": "code"}, "stages: [{name: x, purposes: [prose]}]", {}, ["'x'", "(purposes prose)", "'a'"]),
            ({"a": "code", "b": "prose"}, "stages: [{name: x, purposes: [prose]}]", {}, ["'a' takes part in no stage"]),
            ({"a": None, "b": None}, "stages: [{name: x, datasets: [a]}]", {}, ["'b'", "no stage", "not given"]),
            ({"a": None}, "stages: [{name: x}]", {"a": ", epochs: 0"}, ["'x'", "no dataset"]),
            ({"a": None}, "stages: [{name: x, total_tokens: 5}]", {}, ["'x'", "`weight`", "total_tokens"]),
            (
                {"a": None},
                "stages: [{name: x, total_tokens: 5, datasets: {a: {epochs: 2}}}]",
                {"a": ", weight: 1"},
                ["'x'", "`weight`"],
            ),
        ],
        ids=[
            "qwen3-one-stage-empty",
            "qwen3-no-purpose",
            "qwen3-misspelt",
            "no-such-purpose",
            "purpose-nowhere",
            "not-listed",
            "no-epochs",
            "budget-without-weights",
            "budget-with-epochs-of-its-own",
        ],
    )
    def test_refused(self, purposes: dict[str, str | None], top: str, more: dict[str, str], parts: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            outputs_for(purposes, top, more)
        for part in parts:
            assert part in str(caught.value)

    def test_a_dataset_without_epochs_may_be_in_no_stage(self) -> None:
        purposes = {"a": "grammar", "b": "code", "c": None}
        assert len(outputs_for(purposes, "stages: qwen3", {"c": ", epochs: 0"})) == 3


@pytest.mark.parametrize(
    ("top", "more", "part"),
    [
        ("", ", weight: .inf", "`datasets[0].weight`: inf is not between"),
        ("", ", weight: 1e-300", "`datasets[0].weight`: 1e-300 is not between"),
        ("", ", weight: 1e300", "only the proportions"),
        ("total_tokens: .inf", ", weight: 1", "`total_tokens`: inf is more than 1e+15"),
        ("stages: [{name: x, total_tokens: 1e99}]", ", weight: 1", "`stages[0].total_tokens`: 1e+99"),
        ("stages: [{name: x, max_epochs: .inf}]", ", weight: 1", "`stages[0].max_epochs`: inf is more than"),
        ("stages: [{name: x, datasets: {a: {weight: 1e13}}}]", "", "`stages[0].datasets.a`: 1e+13"),
    ],
)
def test_numbers_out_of_range(top: str, more: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of({"a": None}, top, {"a": more})
    assert part in str(caught.value)
    assert "line " in str(caught.value)


BASE = """
datasets:
  - {name: a, text_field: t, input: a, weight: 1, purpose: grammar}
  - {name: b, text_field: t, input: b, weight: 3, purpose: code}
"""


class TestFingerprint:
    """What decides the bytes decides the fingerprint, and nothing else."""

    def fingerprint(self, text: str, spec: TokenizerSpec, **overrides: Any) -> str:
        config = parse_config(text, overrides=overrides)
        sources: tuple[Source, ...] = resolve_sources(config, spec, None)
        outputs = outputs_of(config, [source.template.purpose for source in sources])
        return fingerprint(config, sources, outputs, spec, "inputs")

    def test_each_key_of_a_mixture_changes_it(self, qwen3: TokenizerSpec) -> None:
        tops = [
            "",
            "splits: {train: 0.9, val: 0.1}",
            "splits: {train: 0.8, val: 0.2}",
            "splits: {train: 0.9, test: 0.1}",
            "total_tokens: 1e6",
            "total_tokens: 2e6",
            "max_epochs: 2",
            "packing: best_fit",
            "stages: qwen3",
            "stages: [{name: x}]",
            "stages: [{name: y}]",
            "stages: [{name: x, min_chars: 5}]",
            "stages: [{name: x, min_tokens: 5}]",
            "stages: [{name: x, context_length: 64}]",
            "stages: [{name: x, total_tokens: 7}]",
            "stages: [{name: x, max_epochs: 7}]",
            "stages: [{name: x, packing: best_fit}]",
            "stages: [{name: x, datasets: {a: {weight: 2}, b: {weight: 3}}}]",
            "stages: [{name: x, datasets: {a: {weight: 2}, b: {epochs: 3}}}]",
            "stages: [{name: x, purposes: [grammar]}, {name: z, purposes: [code]}]",
            "dedup: none",
            "tail: drop",
        ]
        texts = [top + BASE for top in tops]
        texts += [BASE.replace("weight: 3", "weight: 4"), BASE.replace("weight: 3", "epochs: 3")]
        texts += [("stages: qwen3" + BASE).replace("purpose: code", "purpose: agentic")]
        found = [self.fingerprint(text, qwen3) for text in texts]
        assert len(set(found)) == len(found)

    def test_what_leaves_the_bytes_alone_leaves_it_alone(self, qwen3: TokenizerSpec) -> None:
        first = self.fingerprint(BASE, qwen3)
        for top in ("views: [4096]", "output: elsewhere", "max_rejects: 0.5", "total_tokens: null", "max_epochs: 1.0"):
            assert self.fingerprint(f"{top}\n{BASE}", qwen3) == first
        assert self.fingerprint(BASE, qwen3, output="another") == first
        assert self.fingerprint("total_tokens: 1000000\n" + BASE, qwen3) == self.fingerprint(
            "total_tokens: 1e6\n" + BASE, qwen3
        )
