"""The configuration: every error at once, each with its line, its key and what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from beam_prep.config import Config, Filter, load_config, parse_config
from beam_prep.errors import ConfigError

DATASET = "{name: a, template: gsm8k, input: a.jsonl}"
GOOD = f"datasets: [{DATASET}]\n"


def errors(text: str, name: str = "c.yaml", overrides: dict[str, Any] | None = None) -> list[str]:
    """The lines of the error that a configuration gives."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, name, overrides)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def with_dataset(keys: str) -> str:
    return f"datasets:\n  - name: a\n    template: gsm8k\n    input: a.jsonl\n    {keys}\n"


def filter_of(keys: str) -> Filter:
    return parse_config(with_dataset(f"filter: {keys}")).datasets[0].filter


def test_defaults_are_the_documented_ones() -> None:
    config = parse_config(GOOD)
    assert (config.tokenizer, config.context_length, config.seed, config.output) == ("qwen3", 32_768, 0, "out")
    assert (config.packing, config.tail, config.dedup, config.max_rejects) == ("concat", "pad", "exact", 0.01)
    (dataset,) = config.datasets
    assert (dataset.name, dataset.template, dataset.input) == ("a", "gsm8k", ["a.jsonl"])
    assert (dataset.epochs, dataset.weight, dataset.filter) == (None, None, Filter())


def test_all_errors_of_a_file_at_once_each_with_line_and_key() -> None:
    text = """\
tokeniser: qwen3
context_length: 4k
seed: -1
tail: cut
max_rejects: 2
datasets:
  - name: wiki
    template: wikipedia
    input: wiki.jsonl
    epocs: 2
  - name: a/b
    template: gsm8k
    input: []
    filter:
      min_chars: many
      min_char: 3
  - name: c
    template: gsm8k
    text_field: text
    input: c.jsonl
  - name: d
    template: gsm8k
"""
    first, *found = errors(text)
    assert first == f"c.yaml: {len(found)} errors"
    expected = [
        ("line 1: ", "`tokeniser`", "did you mean `tokenizer`?"),
        ("line 2: ", "`context_length`", "'4k'"),
        ("line 3: ", "`seed`", "greater than or equal to 0"),
        ("line 4: ", "`tail`", "'pad' or 'drop'"),
        ("line 5: ", "`max_rejects`", "less than or equal to 1"),
        ("line 10: ", "`datasets[0].epocs`", "did you mean `epochs`?"),
        ("line 11: ", "`datasets[1].name`", "letters, digits"),
        ("line 13: ", "`datasets[1].input`", "at least 1 item"),
        ("line 15: ", "`datasets[1].filter.min_chars`", "'many'"),
        ("line 16: ", "`datasets[1].filter.min_char`", "did you mean `min_chars`?"),
        ("line 17: ", "`datasets[2]`", "either template or text_field"),
        ("line 21: ", "`datasets[3].input`", "missing; add it"),
    ]
    assert len(found) == len(expected)
    for parts in expected:
        assert any(all(part in line for part in parts) for line in found), (parts, found)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("contxt_length: 1\n", "`context_length`"),
        ("outputs: x\n", "`output`"),
        ("deduplicate: exact\n", "`dedup`"),
        ("tokenizer_backand: auto\n", "`tokenizer_backend`"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(text: str, near: str) -> None:
    _, line = errors(text + GOOD)
    key = text.partition(":")[0]
    assert line.strip() == f"line 1: unknown key `{key}`; did you mean {near}?"


def test_an_unknown_key_near_nothing_lists_what_is_known() -> None:
    _, line = errors("zzzzzz: 1\n" + GOOD)
    assert "`zzzzzz`" in line
    assert all(key in line for key in Config.model_fields)


@pytest.mark.parametrize("key", ["list", "str", "dict", "Stage", "a[b]", "1", "~", "é", "''"])
def test_an_unknown_key_of_an_odd_name_is_an_error_like_any_other(key: str) -> None:
    head, *lines = errors(f"{key}: 3\n" + GOOD)
    assert head == "c.yaml: 1 error"
    assert "unknown key" in lines[0] or "keys should be strings" in lines[0]


@pytest.mark.parametrize("key", ["list", "str", "a[b]"])
def test_an_unknown_key_of_an_odd_name_in_a_dataset(key: str) -> None:
    _, line = errors(with_dataset(f"{key}: 3"))
    assert f"line 5: unknown key `datasets[0].{key}`" in line


def test_a_key_given_twice_is_an_error_wherever_it_stands() -> None:
    text = "seed: 1\ndatasets:\n  - name: a\n    template: gsm8k\n    name: b\n    input: a\nseed: 2\n"
    _, *lines = errors(text)
    assert [line.strip() for line in lines] == [
        "line 5: `name` is given twice; keep one",
        "line 7: `seed` is given twice; keep one",
    ]


def test_an_alias_does_not_make_a_key_double() -> None:
    text = "datasets:\n  - &first {name: a, template: gsm8k, input: a}\n  - {<<: *first, name: b}\n"
    assert [d.name for d in parse_config(text).datasets] == ["a", "b"]


def test_two_datasets_of_one_name() -> None:
    _, line = errors(f"datasets: [{DATASET}, {DATASET}]\n")
    assert "`datasets`: two datasets are called 'a'; give each a name of its own" in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tokenizer: 3", ["`tokenizer`", "string"]),
        ("tokenizer: ''", ["`tokenizer`", "at least 1 character"]),
        ("context_length: 1", ["`context_length`", "greater than or equal to 2"]),
        ("context_length: 2.5", ["`context_length`", "integer"]),
        ("context_length: [1]", ["`context_length`", "integer"]),
        ("seed: yes", ["`seed`", "needs a number"]),
        ("seed: 9223372036854775808", ["`seed`", "less than"]),
        ("output: 2024-01-01", ["`output`", "string"]),
        ("dedup: no", ["`dedup`", "'exact' or 'none'", "False"]),
        ("max_rejects: .nan", ["`max_rejects`"]),
        ("max_rejects: true", ["`max_rejects`", "needs a number"]),
    ],
)
def test_wrong_types_and_values(text: str, parts: list[str]) -> None:
    head, line = errors(f"{text}\n{GOOD}")
    assert head == "c.yaml: 1 error"
    for part in ["line 1: ", *parts]:
        assert part in line


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ("epochs: -0.5", ["`datasets[0].epochs`", "greater than or equal to 0"]),
        ("epochs: .nan", ["`datasets[0].epochs`"]),
        ("epochs: .inf", ["`datasets[0].epochs`"]),
        ("epochs: yes", ["`datasets[0].epochs`", "needs a number"]),
        ("epochs: twice", ["`datasets[0].epochs`", "'twice'"]),
        ("max_rejects: 1.01", ["`datasets[0].max_rejects`"]),
        ("filter: 3", ["`datasets[0].filter`", "mapping"]),
        ("filter: long", ["`datasets[0].filter`", "mapping"]),
        ("filter: [3]", ["`datasets[0].filter`", "mapping"]),
        ("filter: {min_chars: -1}", ["`datasets[0].filter.min_chars`"]),
        ("filter: {min_chars: 5, max_chars: 4}", ["min_chars 5 is above max_chars 4"]),
        ("filter: {min_tokens: 5, max_tokens: 4}", ["min_tokens 5 is above max_tokens 4"]),
        ("filter: {fields: 3}", ["`datasets[0].filter.fields`", "list"]),
        ("filter: [{fields: 3}]", ["`datasets[0].filter`", "`fields` is a list"]),
        ("filter: {field: a, ge: 1, fields: 3}", ["`datasets[0].filter`", "`fields` is a list"]),
        ("filter: {fields: [{ge: 3}]}", ["`datasets[0].filter.fields[0].field`", "missing"]),
        ("filter: {fields: [{field: '', ge: 3}]}", ["`datasets[0].filter.fields[0].field`"]),
        ("filter: {field: score}", ["`datasets[0].filter.fields[0]`", "no comparison; give one of eq, ne"]),
        ("filter: {fields: [{field: s, ge: 1, gee: 3}]}", ["unknown key", "gee", "did you mean `ge`?"]),
        ("filter: {field: s, ge: 1, gtt: 3}", ["unknown key `datasets[0].filter.gtt`", "did you mean `gt`?"]),
    ],
)
def test_wrong_keys_of_a_dataset(keys: str, parts: list[str]) -> None:
    head, line = errors(with_dataset(keys))
    assert head == "c.yaml: 1 error"
    for part in ["line 5: ", *parts]:
        assert part in line


@pytest.mark.parametrize(
    "dataset",
    ["3", "a.jsonl", "[]", "{name: a}", "{name: '', template: x, input: y}", "{name: ../a, template: x, input: y}"],
)
def test_what_is_no_dataset(dataset: str) -> None:
    assert "datasets[0]" in "\n".join(errors(f"datasets: [{dataset}]\n"))


@pytest.mark.parametrize("text", ["datasets: []\n", "datasets: 3\n", "datasets:\n", "seed: 1\n", "datasets: &x [*x]\n"])
def test_no_datasets(text: str) -> None:
    assert "`datasets" in errors(text)[1]


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "3\n", "datasets\n"])
def test_what_is_no_mapping(text: str) -> None:
    (line,) = errors(text)
    assert line.startswith("c.yaml: a configuration is a mapping")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb:\n\t- c\n", 3),
        ("a: [1\nb: 2\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\n? [a, b]\n: c\n", 2),
        ("a: !!python/object/apply:os.getcwd []\n", 1),
    ],
)
def test_what_is_no_yaml_names_the_line(text: str, line: int) -> None:
    (message,) = errors(text)
    assert message.startswith(f"c.yaml, line {line}: not valid YAML: ")


def test_a_control_character_is_no_yaml() -> None:
    assert "c.yaml: not valid YAML" in errors("seed: \0\n")[0]


def test_epochs_and_weight_exclude_each_other() -> None:
    lines = errors(with_dataset("epochs: 1\n    weight: 0.5"))
    assert any("`datasets[0]`: epochs and weight are two ways to say one thing" in line for line in lines)


TWO = "datasets:\n- {name: a, text_field: t, input: a, weight: 1}\n- {name: b, text_field: t, input: b, weight: 3}\n"


def test_the_keys_of_a_mixture() -> None:
    config = parse_config(
        "splits: {train: 0.9, val: 0.1}\npacking: best_fit\ntotal_tokens: 1.7e9\nmax_epochs: 4\nviews: [4096]\n"
        "stages:\n- {name: S1, context_length: 4096, purposes: [code]}\n"
        "- {name: S2, datasets: {a: {weight: 1}, b: {epochs: 2}}, min_chars: 5, min_tokens: 2, total_tokens: 1e6}\n"
        "- {name: S3, datasets: [b], max_epochs: 2, packing: concat}\n" + TWO
    )
    assert config.splits == {"train": 0.9, "val": 0.1}
    assert (config.packing, config.total_tokens, config.max_epochs, config.views) == ("best_fit", 1.7e9, 4, [4096])
    assert [stage.name for stage in config.stages] == ["S1", "S2", "S3"]
    assert config.stages[1].datasets["b"].epochs == 2
    assert parse_config("stages: qwen3\n" + GOOD).stages == "qwen3"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("splits: {train: 0.9, val: 0.2}", "`splits`: the fractions sum to 1.1, not 1"),
        ("splits: {train: 1, rejected: 0.5}", "`splits`: 'rejected' becomes a folder"),
        ("splits: {train: 0, val: 1}", "`splits.train`"),
        ("splits: {../x: 1}", "becomes a folder"),
        ("splits: {}", "`splits`"),
        ("stages: qwen4", "`stages`"),
        ("stages: []", "`stages`"),
        ("stages: [{name: S1}, {name: S1}]", "`stages[1].name`: two stages are called 'S1'"),
        ("stages: [{name: S1, datasets: [aa]}]", "`stages[0].datasets`: no dataset is called 'aa'; did you mean 'a'?"),
        ("stages: [{name: S1, datasets: {a: {weight: 1, epochs: 1}}}]", "give either weight or epochs"),
        ("stages: [{name: S1, purpose: [code]}]", "did you mean `purposes`?"),
        ("views: [5000]", "`views[0]`: 32768 is no multiple of 5000"),
        ("views: [65536]", "`views[0]`: 65536 is not below any context length"),
        ("max_epochs: 0", "`max_epochs`"),
        ("total_tokens: -1", "`total_tokens`"),
        ("packing: bestfit", "`packing`"),
    ],
)
def test_what_a_mixture_cannot_be(keys: str, line: str) -> None:
    found = errors(f"{keys}\n{TWO}")
    assert any(line in each and "line 1" in each for each in found), found


def test_a_budget_needs_a_weight() -> None:
    assert any("`total_tokens`: no dataset has a `weight`" in line for line in errors(f"total_tokens: 5\n{GOOD}"))


def test_a_dataset_without_a_wish_among_weights() -> None:
    found = errors(TWO + "- {name: c, text_field: t, input: c}\n")
    assert any("`datasets[2]`: dataset 'c' has neither `weight` nor `epochs`" in line for line in found)


def test_overrides_replace_what_the_file_says() -> None:
    config = parse_config("seed: 1\noutput: a\n" + GOOD, overrides={"seed": 7, "output": None, "context_length": 64})
    assert (config.seed, config.output, config.context_length) == (7, "a", 64)


def test_an_override_of_zero_is_one() -> None:
    assert parse_config("seed: 5\n" + GOOD, overrides={"seed": 0}).seed == 0


def test_a_wrong_override_is_an_error() -> None:
    assert "`--seed`" in errors(GOOD, overrides={"seed": -1})[1]


def test_an_override_mends_a_wrong_value() -> None:
    assert parse_config("seed: wrong\n" + GOOD, overrides={"seed": 3}).seed == 3


def test_input_may_be_one_pattern_or_a_list() -> None:
    assert parse_config(GOOD).datasets[0].input == ["a.jsonl"]
    both = parse_config("datasets: [{name: a, template: gsm8k, input: [a, 'b*']}]\n")
    assert both.datasets[0].input == ["a", "b*"]


@pytest.mark.parametrize("value", ["3", "{a: b}", "[3]", "[[a]]", "~"])
def test_input_of_another_type(value: str) -> None:
    assert "datasets[0].input" in errors(f"datasets: [{{name: a, template: gsm8k, input: {value}}}]\n")[1]


class TestFilterForms:
    """`filter` has short forms; they mean the same as the long one."""

    LONG = filter_of("{min_chars: 9, fields: [{field: score, ge: 3}, {field: lang, in: [de, en]}]}")

    def test_one_comparison(self) -> None:
        assert filter_of("{field: score, ge: 3}") == filter_of("{fields: [{field: score, ge: 3}]}")

    def test_one_comparison_beside_other_criteria(self) -> None:
        assert filter_of("{field: score, ge: 3, min_chars: 9}").min_chars == 9

    def test_a_list_joins(self) -> None:
        short = filter_of("[{field: score, ge: 3}, {min_chars: 9}, {field: lang, in: [de, en]}]")
        assert short == self.LONG

    def test_a_comparison_beside_a_list_of_them(self) -> None:
        assert filter_of("{min_chars: 9, field: score, ge: 3, fields: [{field: lang, in: [de, en]}]}") == self.LONG

    def test_several_comparisons_of_one_field(self) -> None:
        (field,) = filter_of("{field: score, ge: 3, lt: 5, when_present: true}").fields
        assert field.comparisons() == {"ge": 3, "lt": 5}
        assert field.when_present

    def test_null_is_a_value_to_compare_with(self) -> None:
        (field,) = filter_of("{field: score, ne: null}").fields
        assert field.comparisons() == {"ne": None}

    def test_nothing(self) -> None:
        assert filter_of("{}") == filter_of("[]") == Filter()


class TestFilterOverTemplate:
    """A dataset's filter over the one that its template brings."""

    DEFAULT = Filter.model_validate([{"min_chars": 10, "max_chars": 90}, {"field": "score", "ge": 3}])

    def test_says_nothing(self) -> None:
        assert Filter().over(self.DEFAULT) == self.DEFAULT

    def test_replaces_by_criterion(self) -> None:
        joined = Filter.model_validate({"min_chars": 20, "field": "lang", "eq": "en"}).over(self.DEFAULT)
        assert (joined.min_chars, joined.max_chars) == (20, 90)
        assert [(f.field, f.comparisons()) for f in joined.fields] == [("score", {"ge": 3}), ("lang", {"eq": "en"})]

    def test_replaces_the_comparison_of_a_field(self) -> None:
        joined = Filter.model_validate({"field": "score", "ge": 1}).over(self.DEFAULT)
        assert [f.comparisons() for f in joined.fields] == [{"ge": 1}]

    def test_null_takes_a_criterion_away(self) -> None:
        assert Filter.model_validate({"max_chars": None}).over(self.DEFAULT).max_chars is None

    def test_a_contradiction_that_only_both_make(self) -> None:
        with pytest.raises(ConfigError, match="min_chars 100 is above max_chars 90"):
            Filter.model_validate({"min_chars": 100}).over(self.DEFAULT)


class TestLoad:
    """From a file."""

    def test_reads_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("output: Ausgäbe-日本\n" + GOOD, encoding="utf-8")
        assert load_config(str(path)).output == "Ausgäbe-日本"

    def test_a_byte_order_mark_is_fine(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(GOOD, encoding="utf-8-sig")
        assert load_config(str(path)) == parse_config(GOOD)

    def test_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("seed: -1\n" + GOOD)
        with pytest.raises(ConfigError, match="c.yaml: 1 error"):
            load_config(str(path))

    @pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
    def test_cannot_be_read(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "c.yaml"
        if kind == "folder":
            path.mkdir()
        elif kind == "binary":
            path.write_bytes(b"seed: \xff\xfe\n")
        with pytest.raises(ConfigError) as caught:
            load_config(str(path))
        assert str(path) in str(caught.value)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_keys = st.sampled_from([*Config.model_fields, "name", "template", "input", "filter", "fields", "field", "ge", "list"])
_values = st.recursive(
    _scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(_keys | st.text(max_size=5), v, max_size=4)
)


@given(st.dictionaries(_keys | st.text(max_size=5), _values, max_size=6))
def test_whatever_is_written_gives_a_configuration_or_a_configuration_error(value: dict[str, Any]) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    try:
        config = parse_config(text)
    except ConfigError as error:
        assert len(str(error).splitlines()) > 1 or "not valid YAML" in str(error) or not value
    else:
        assert config.datasets
