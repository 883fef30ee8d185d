"""Transform: every line becomes a document or is counted with a reason; nothing stops the run."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_prep.config import MIN_CHARS_FOR_LONG, Filter
from beam_prep.documents import Document, Reject
from beam_prep.ledger import Tally, total
from beam_prep.reading import RecordBatch, split_lines
from beam_prep.runs import pack_rejected, rejected_rows
from beam_prep.templates import Context, Template, compile_template
from beam_prep.transform import (
    DocumentBatch,
    Rejected,
    compile_filters,
    compile_transformer,
    dead_letter,
    parse_record,
    transform_batch,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = Template(name="t", required={"text": "string"}, text="{{ text }}")


def batch_of(content: bytes) -> RecordBatch:
    batches = list(split_lines([content] if content else [], 0))
    lines = [line for part, _ in batches for line in part]
    offsets = np.concatenate([o for _, o in batches]) if batches else np.empty(0, np.uint64)
    return RecordBatch(2, "unit", False, 7, "some/file.jsonl", lines, offsets)


def transform(
    content: bytes, template: Template = TEXT, filter_: Any = None, checked: bool = False, seed: int = 0
) -> DocumentBatch:
    renderer = compile_template(template, SPECIAL)
    chosen = Filter.model_validate(filter_ or {})
    return transform_batch(batch_of(content), compile_transformer(renderer, chosen, seed, checked))


def of(function: Callable[[dict, Context], Document], content: bytes, filter_: Any = None) -> DocumentBatch:
    """Transforms with a renderer of one's own, which may do what templates never would."""
    chosen = Filter.model_validate(filter_ or {})
    return transform_batch(batch_of(content), compile_transformer(function, chosen, 0, True))


def code_of(line: bytes) -> str:
    with pytest.raises(Reject) as caught:
        parse_record(line)
    assert caught.value.message
    return caught.value.code


_words = st.text(st.characters(exclude_categories=["Cs"]))
_values = (
    _words | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.lists(_words)
)


class TestParse:
    """What is a record."""

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            (b"\xff", "invalid_utf8"),
            (b'{"text": "\xff"}', "invalid_utf8"),
            (b'{"text": "\xc3"}', "invalid_utf8"),
            (b'{"text": "\xed\xa0\x80"}', "invalid_utf8"),  # a surrogate in UTF-8
            (b'{"text": "\xc0\xaf"}', "invalid_utf8"),  # an overlong form
            (b'{"text": "\xf5\x80\x80\x80"}', "invalid_utf8"),  # beyond U+10FFFF
            (b"{", "invalid_json"),
            (b'{"text": "a"', "invalid_json"),
            (b'{"text": "a"}}', "invalid_json"),
            (b'{"text": "a"} {"text": "b"}', "invalid_json"),
            (b"{'text': 'a'}", "invalid_json"),
            (b'{"text": "a",}', "invalid_json"),
            (b'{text: "a"}', "invalid_json"),
            (b'{"text": "a\tb"}', "invalid_json"),
            (b'{"text": "a\0b"}', "invalid_json"),
            (b"\0\0\0\0", "invalid_json"),
            (b'{"text": "\\x41"}', "invalid_json"),
            (b'{"n": NaN}', "invalid_json"),
            (b'{"n": Infinity}', "invalid_json"),
            (b'{"n": -Infinity}', "invalid_json"),
            (b'{"n": 01}', "invalid_json"),
            (b'{"n": 1.}', "invalid_json"),
            (b'{"n": +1}', "invalid_json"),
            (b'{"n": 0x1}', "invalid_json"),
            (b'\xef\xbb\xbf{"text": "a"}', "invalid_json"),
            (b"not json", "invalid_json"),
            (b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_json"),
            (b"[" * 10_000, "invalid_json"),
            (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "invalid_json"),
            (b'{"text": "\\ud800"}', "lone_surrogate"),
            (b'{"text": "a \\udc00 b"}', "lone_surrogate"),
            (b'{"text": "\\udc00\\ud800"}', "lone_surrogate"),
            (b'{"\\ud83d": 1}', "lone_surrogate"),
            (b'{"a": [{"b": "\\udfff"}]}', "lone_surrogate"),
            (b"[]", "not_an_object"),
            (b'[{"text": "a"}]', "not_an_object"),
            (b"3", "not_an_object"),
            (b"1" * 10_000, "not_an_object"),
            (b'"text"', "not_an_object"),
            (b"null", "not_an_object"),
            (b"true", "not_an_object"),
        ],
    )
    def test_codes(self, line: bytes, code: str) -> None:
        assert code_of(line) == code
        result = transform(line + b"\n")
        assert result.tally.rejected == {code: 1}
        assert not result.documents

    @pytest.mark.parametrize(
        "line",
        [
            b'{"text": "a"}',
            b' \t{"text": "a"}\r',
            b'{"text": "a", "text": "b"}',
            b'{"text": "\\u0000"}',
            b'{"text": "\\ud83d\\ude00"}',
            b'{"text": "a", "n": 123456789012345678901234567890}',
            b'{"text": "a", "n": ' + b"9" * 10_000 + b"}",
            b'{"text": "a", "n": -' + b"9" * 10_000 + b"}",
            b'{"text": "a", "n": 1e400}',
            b'{"text": "a", "n": 1e-400}',
            b'{"text": "a", "deep": ' + b"[" * 500 + b"]" * 500 + b"}",
            b'{"text": "' + b"a" * 100_000 + b'"}',
            '{"text": "a\u2028b\u0085c\ufeff\ufffd"}'.encode(),
        ],
    )
    def test_records(self, line: bytes) -> None:
        wanted = json.loads(line)["text"] if len(line) < 5000 or b"9999" not in line else "a"
        assert parse_record(line)["text"] == wanted
        assert transform(line).documents == [wanted]

    def test_the_last_of_equal_keys_counts(self) -> None:
        assert transform(b'{"text": "a", "text": "b"}').documents == ["b"]

    @given(st.dictionaries(st.text(max_size=5), _values, max_size=4))
    def test_valid_json_is_taken_as_it_is(self, value: dict[str, Any]) -> None:
        for ascii_only in (False, True):
            assert parse_record(json.dumps(value, ensure_ascii=ascii_only).encode()) == value

    @given(st.binary(max_size=40))
    def test_any_bytes_give_a_record_or_a_reason(self, line: bytes) -> None:
        try:
            assert type(parse_record(line)) is dict
        except Reject as reject:
            assert reject.code in ("invalid_utf8", "invalid_json", "lone_surrogate", "not_an_object")


class TestTransform:
    """Lines in, documents and counts out."""

    CONTENT = (
        b'{"text": "first"}\n'  # 0
        b"\n"  # 18
        b'{"text": ""}\n'  # 19
        b"  \t\r\n"  # 32
        b'{"text": null}\n'  # 37
        b'{"txt": "x"}\n'  # 52
        b'{"text": ["x"]}\n'  # 65
        b"\xff\n"  # 81
        b'{"text": "s"}\n'  # 83
        b'{"text": "much too long for this"}\n'  # 97
        b'{"text": "last"}'  # 132
    )

    def test_every_line_is_accounted_for(self) -> None:
        result = transform(self.CONTENT, filter_={"min_chars": 2, "max_chars": 10})
        assert result.documents == ["first", "last"]
        assert result.offsets.tolist() == [0, 132]
        assert result.chars.tolist() == [5, 4]
        tally = result.tally
        assert tally.blank_lines == 2
        assert tally.rejected == {
            "empty_field": 1,
            "null_field": 1,
            "missing_field": 1,
            "wrong_type": 1,
            "invalid_utf8": 1,
        }
        assert tally.filtered == {"min_chars": 1, "max_chars": 1}
        assert (tally.records, tally.rendered) == (9, 2)
        assert tally.records + tally.blank_lines == self.CONTENT.count(b"\n") + 1

    def test_rejects_say_where_and_why_and_hold_the_record(self) -> None:
        rejects = transform(self.CONTENT).rejects
        assert [(r.offset, r.reason) for r in rejects] == [
            (19, "empty_field"),
            (37, "null_field"),
            (52, "missing_field"),
            (65, "wrong_type"),
            (81, "invalid_utf8"),
        ]
        for reject in rejects:
            assert reject.path == "some/file.jsonl"
            assert reject.message
            end = self.CONTENT.index(b"\n", reject.offset)
            assert reject.raw == self.CONTENT[reject.offset : end]

    def test_where_it_came_from_goes_on(self) -> None:
        batch = batch_of(b'{"text": "a"}')
        result = transform_batch(batch, compile_transformer(compile_template(TEXT, SPECIAL), Filter(), 0, False))
        assert result[:5] == (batch.source, batch.unit, batch.last, batch.file, batch.path)
        assert result.ids.shape == (0, 2)

    def test_no_lines(self) -> None:
        result = transform(b"")
        assert (len(result.documents), len(result.offsets), len(result.chars)) == (0, 0, 0)
        assert result.tally == Tally()

    @given(
        st.lists(
            st.sampled_from(
                [b"", b" ", b'{"text": "ab"}', b'{"text": ""}', b'{"text": 1}', b"[]", b"{}", b"\xff", b"x"]
            )
            | st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")),
            max_size=20,
        )
    )
    def test_the_ledger_adds_up_for_any_lines(self, lines: list[bytes]) -> None:
        result = transform(b"".join(line + b"\n" for line in lines), filter_={"min_chars": 2})
        tally = result.tally
        rejected, filtered = sum(tally.rejected.values()), sum(tally.filtered.values())
        assert tally.records == rejected + filtered + len(result.documents)
        assert tally.records + tally.blank_lines == len(lines)
        assert rejected == len(result.rejects)
        assert len(result.documents) == len(result.offsets) == len(result.chars) == tally.rendered

    def test_control_tokens_count_as_they_are_read(self) -> None:
        template = Template(name="t", required={"text": "string"}, text="<|im_start|>{{ text }}<|im_end|>")
        result = transform(b'{"text": "abc"}', template)
        assert result.chars.tolist() == [len("<|im_start|>abc<|im_end|>")]

    def test_skipped_turns_are_counted(self) -> None:
        template = Template.model_validate({"name": "t", "chat": {"messages": "m"}})
        turns = [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}, {"role": "?", "content": "c"}]
        result = transform(json.dumps({"m": turns}).encode(), template)
        assert result.tally.skipped_turns == {"unknown_role": 2}
        assert len(result.documents) == 1

    def test_a_template_that_fails_on_a_row_rejects_the_row(self) -> None:
        template = Template(name="t", text="{{ 1 // n }}")
        result = transform(b'{"n": 0}\n{"n": 1}', template)
        assert result.documents == ["1"]
        assert result.tally.rejected == {"template_error": 1}
        assert "ZeroDivisionError" in result.rejects[0].message

    @pytest.mark.parametrize(
        "error", [ValueError("x" * 9999), KeyError("\ud800"), ValueError("half \ud800"), OSError()]
    )
    def test_a_function_that_fails_on_a_row_rejects_the_row(self, error: Exception) -> None:
        def fail(record: dict, context: Context) -> str:
            raise error

        result = of(fail, b'{"text": "a"}')
        assert result.tally.rejected == {"template_error": 1}
        (reject,) = result.rejects
        assert 0 < len(reject.message) <= 510
        (again,) = rejected_rows(pack_rejected([reject]))
        assert (again.offset, again.reason, again.raw) == (0, "template_error", b'{"text": "a"}')
        assert json.loads(dead_letter("a", again))["raw"] == '{"text": "a"}'

    def test_a_function_that_makes_half_a_surrogate_pair(self) -> None:
        result = of(lambda record, context: "a\ud800", b"{}")
        assert result.tally.rejected == {"lone_surrogate": 1}

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
    def test_an_interruption_is_no_reject(self, error: BaseException) -> None:
        def stop(record: dict, context: Context) -> str:
            raise error

        with pytest.raises(type(error)):
            of(stop, b"{}")


class TestFilters:
    """Lengths and comparisons on raw fields."""

    @pytest.mark.parametrize(
        ("filter_", "kept"),
        [
            ({"min_chars": 3}, [3, 4]),
            ({"max_chars": 2}, [1, 2]),
            ({"min_chars": 2, "max_chars": 3}, [2, 3]),
            ({"min_chars": 0, "max_chars": 0}, []),
        ],
    )
    def test_bounds_are_inclusive(self, filter_: dict[str, int], kept: list[int]) -> None:
        content = b"".join(b'{"text": "%s"}\n' % (b"x" * n) for n in (1, 2, 3, 4))
        result = transform(content, filter_=filter_)
        assert result.chars.tolist() == kept
        assert sum(result.tally.filtered.values()) == 4 - len(kept)

    def test_characters_are_not_bytes(self) -> None:
        result = transform('{"text": "日本😀"}'.encode(), filter_={"max_chars": 3})
        assert result.chars.tolist() == [3]

    def test_long(self) -> None:
        content = b"".join(b'{"text": "%s"}\n' % (b"x" * n) for n in (MIN_CHARS_FOR_LONG - 1, MIN_CHARS_FOR_LONG))
        result = transform(content, filter_={"long": True})
        assert result.chars.tolist() == [MIN_CHARS_FOR_LONG]
        assert result.tally.filtered == {"long": 1}

    def test_long_beside_a_higher_bound(self) -> None:
        result = transform(b'{"text": "%s"}' % (b"x" * 40_000), filter_={"long": True, "min_chars": 50_000})
        assert result.tally.filtered == {"min_chars": 1}

    def test_a_row_is_rejected_before_it_is_filtered(self) -> None:
        result = transform(b'{"score": 1}', filter_={"field": "score", "ge": 3})
        assert result.tally.rejected == {"missing_field": 1}
        assert not result.tally.filtered

    def test_reasons(self) -> None:
        content = b'{"text": "a", "score": 5}\n{"text": "b", "score": 1}\n{"text": "c"}\n{"text": "d", "score": 9}\n'
        result = transform(content, filter_={"field": "score", "ge": 3, "lt": 9})
        assert result.documents == ["a"]
        assert result.tally.filtered == {"score.ge": 2, "score.lt": 1}
        assert not result.rejects

    @pytest.mark.parametrize(
        ("comparison", "value", "kept"),
        [
            ({"eq": 3}, 3, True),
            ({"eq": 3}, 3.0, True),
            ({"eq": 3}, "3", False),
            ({"eq": "en"}, "en", True),
            ({"eq": True}, True, True),
            ({"eq": True}, False, False),
            ({"ne": 3}, 4, True),
            ({"ne": 3}, 3, False),
            ({"gt": 3}, 3, False),
            ({"gt": 3}, 3.5, True),
            ({"ge": 3}, 3, True),
            ({"ge": 3}, "4", False),
            ({"ge": "2024"}, "2024-05-01", True),
            ({"lt": 3}, 3, False),
            ({"le": 3}, 3, True),
            ({"le": 3}, [1], False),
            ({"in": ["de", "en"]}, "en", True),
            ({"in": ["de", "en"]}, "fr", False),
            ({"in": [1, 2]}, {"a": 1}, False),
            ({"not_in": ["de"]}, "en", True),
            ({"not_in": ["de"]}, "de", False),
            ({"ge": 1, "le": 3}, 2, True),
            ({"ge": 1, "le": 3}, 4, False),
        ],
    )
    def test_comparisons(self, comparison: dict[str, Any], value: Any, kept: bool) -> None:
        (check,) = compile_filters(Filter.model_validate({"field": "a.b", **comparison}))
        assert (check({"a": {"b": value}}) is None) is kept

    @pytest.mark.parametrize("record", [{}, {"a": None}, {"a": {}}, {"a": {"b": None}}, {"a": 3}])
    def test_a_field_that_is_not_there(self, record: dict[str, Any]) -> None:
        (check,) = compile_filters(Filter.model_validate({"field": "a.b", "ne": "x"}))
        assert check(record) == "a.b.ne"
        (check,) = compile_filters(Filter.model_validate({"field": "a.b", "ne": "x", "when_present": True}))
        assert check(record) is None


class TestDeadLetters:
    """Rejected records on their way to the rejected file."""

    REJECTS = [
        Rejected("a.jsonl", 0, "invalid_json", "why", b'{"text": '),
        Rejected("ü/日本.jsonl", 2**40, "invalid_utf8", 'says "no"\n', b"\xff\x00\xfe"),
        Rejected("a.jsonl", 7, "empty_field", "", b""),
        Rejected("a.jsonl", 9, "wrong_type", "x", b'a line\r["with", "brackets"]\\u2028\xe2\x80\xa8'),
    ]

    def test_a_readable_record_stands_as_text(self) -> None:
        line = dead_letter("wiki", self.REJECTS[3])
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert json.loads(line) == {
            "dataset": "wiki",
            "file": "a.jsonl",
            "offset": 9,
            "reason": "wrong_type",
            "message": "x",
            "raw": self.REJECTS[3].raw.decode(),
        }

    def test_other_bytes_stand_in_base64(self) -> None:
        letter = json.loads(dead_letter("wiki", self.REJECTS[1]))
        assert "raw" not in letter
        assert base64.b64decode(letter["raw_base64"]) == b"\xff\x00\xfe"

    def test_through_a_run_and_back(self) -> None:
        assert list(rejected_rows(pack_rejected(self.REJECTS))) == self.REJECTS
        assert list(rejected_rows(b"")) == []

    @given(st.lists(st.tuples(st.text(), st.integers(0, 2**63 - 1), st.binary(), st.text()), max_size=4))
    def test_any_record_comes_back(self, rows: list[tuple[str, int, bytes, str]]) -> None:
        rejects = [Rejected(path, offset, "code", message, raw) for path, offset, raw, message in rows]
        again = list(rejected_rows(pack_rejected(rejects)))
        assert again == rejects
        for reject in again:
            letter = json.loads(dead_letter("a", reject))
            raw = letter["raw"].encode() if "raw" in letter else base64.b64decode(letter["raw_base64"])
            assert (raw, letter["offset"], letter["file"]) == (reject.raw, reject.offset, reject.path)


class TestTally:
    """Counts add up and travel."""

    def test_round_trip_and_sum(self) -> None:
        tally = transform(TestTransform.CONTENT, filter_={"min_chars": 2}).tally
        assert Tally.from_dict(json.loads(json.dumps(tally.to_dict()))) == tally
        double = total([tally, Tally.from_dict(tally.to_dict())])
        assert double.records == 2 * tally.records
        assert double.rejected == {reason: 2 * n for reason, n in tally.rejected.items()}
        assert orjson.dumps(total([]).to_dict()) == orjson.dumps(Tally().to_dict())

    def test_a_sum_leaves_its_parts_alone(self) -> None:
        tally = transform(TestTransform.CONTENT).tally
        before = tally.to_dict()
        total([tally, tally])
        assert tally.to_dict() == before
