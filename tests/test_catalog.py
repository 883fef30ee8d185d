"""Every entry of the catalogue against plain-Python expectations that share no code with it.

The real rows lie outside of the repository; where that folder is absent, their tests are skipped.
"""

import copy
import gzip
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from beam_prep import catalog
from beam_prep.config import Dataset, Filter
from beam_prep.documents import Filtered, Reject, Segments
from beam_prep.errors import ConfigError
from beam_prep.templates import Context, compile_template

SHARED = Path(__file__).parents[1].parent / "shared"
RAW = SHARED / "data" / "raw"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|fim_prefix|>"]
NASTY = "{{ 7 * 7 }}{% raw %}{# n #} \r\n\r\u2028\u00a0\x85\0\ufeff<|im_start|>user\n<|im_end|><|endoftext|> "

RENDERERS = {name: compile_template(catalog.entry(name), SPECIAL) for name in catalog.names()}
INFO = "original dialog info"
DIALOGSTUDIO = ("soda", "multiwoz", "wizard-of-wikipedia", "sharegpt", "empathetic-dialogues", "samsum")


def render(name, record, seed=0, skipped=None):
    """The rendered document; neither the record nor its order may change under it."""
    before = json.dumps(record)
    try:
        return RENDERERS[name](record, Context(seed, {} if skipped is None else skipped))
    finally:
        assert json.dumps(record) == before


def outcome(name, record, **kwargs):
    """The rendered text, or (reject code,) or (filtered, reason)."""
    try:
        document = render(name, record, **kwargs)
    except Reject as reject:
        assert reject.message
        return (reject.code,)
    except Filtered as filtered:
        return ("filtered", filtered.reason)
    return document if isinstance(document, str) else document.text()


def example(name, /, **changes):
    return {**copy.deepcopy(catalog.entry(name).example), **changes}


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


# --- what each entry should render to, written out by itself -------------------------------------------------


class Talk(NamedTuple):
    """An expected chat."""

    messages: list
    after: str = ""

    def segments(self):
        said = [(role, content) for role, content in self.messages if content]
        pieces, controls = [""], []
        for role, content in said:
            pieces += [role + "\n" + content, "\n"]
            controls += ["<|im_start|>", "<|im_end|>"]
        pieces[-1] = "\n\n" + self.after if self.after else ""
        return pieces, controls


def info_of(row):
    info = row[INFO]
    return json.loads(info) if isinstance(info, str) else info


def log_of(row):
    messages = []
    for turn in row["log"]:
        messages.append(("user", turn["user utterance"]))
        messages.append(("assistant", turn["system response"]))
    return messages


def ref_ecqa(row):
    def option(key):
        return row.get(key) or "(no option)"

    return [
        f"Question: {row['q_text']}\n\nOptions:\n"
        f"A) {option('q_op1')}\nB) {option('q_op2')}\nC) {option('q_op3')}\n"
        f"D) {option('q_op4')}\nE) {option('q_op5')}\n\n"
        f"Reasoning:\n{row.get('taskA_pos') or '(no positive reasoning)'}\n"
        f"{row.get('taskA_neg') or '(no negative reasoning)'}\n\n"
        f"Conclusion: {row['taskB']}\n\nAnswer: {row['q_ans']}"
    ]


def ref_stackexchange(row):
    usable = [a for a in row["answers"] if a.get("text")]
    top = sorted((a.get("pm_score") or 0 for a in usable), reverse=True)[0]
    best = [a["text"] for a in usable if (a.get("pm_score") or 0) == top]
    if len(best) == 1:
        return ["Question: " + row["question"] + "\n\nAnswer: " + best[0]]
    numbered = [f"Answer {place + 1}: " + answer for place, answer in enumerate(best)]
    return ["Question: " + row["question"] + "\n\n" + "\n\n".join(numbered)]


def ref_code_contests(row):
    tests = row.get("public_tests") or {"input": [], "output": []}
    shown = "\n\n".join("Input: " + i + "\nOutput: " + o for i, o in zip(tests["input"], tests["output"], strict=True))
    texts = []
    for number, (name, fence) in {2: ("C++", "cpp"), 3: ("Python3", "python"), 4: ("Java", "java")}.items():
        pairs = zip(row["solutions"]["language"], row["solutions"]["solution"], strict=True)
        codes = sorted((code for language, code in pairs if language == number and code), key=len)
        if codes:
            texts.append(
                f"Problem: {row['name']}\n\n{row['description']}\n\nExamples:\n{shown or '(no examples)'}\n\n"
                f"Solution ({name}):\n```{fence}\n{codes[0]}\n```"
            )
    return texts


def ref_glaive(row):
    chat = row["chat"].replace("<|endoftext|>", "")
    places = [(m.start(), m.end(), m.group()) for m in re.finditer("USER:|ASSISTANT:|FUNCTION RESPONSE:", chat)]
    ends = [start for start, _, _ in places[1:]] + [len(chat)]
    roles = {"USER:": "user", "ASSISTANT:": "assistant", "FUNCTION RESPONSE:": "tool"}
    system = row.get("system") or ""
    if system.startswith("SYSTEM: "):
        system = system[len("SYSTEM: ") :]
    said = [(roles[mark], chat[end:stop].strip()) for (_, end, mark), stop in zip(places, ends, strict=True)]
    return [Talk([("system", system), *said])]


def ref_openbookqa(row):
    options = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    lines = "\n".join(f"{label}) {options[label]}" for label in "ABCD")
    return [f"Question: {row['question_stem']}\n\n{lines}\n\nAnswer: {row['answerKey']}) {options[row['answerKey']]}"]


def ref_soda(row):
    narrative = info_of(row)["narrative"]
    systems = [narrative + "\n\n" + prompt for prompt in row["prompt"] if prompt]
    return [Talk([("system", system), *log_of(row)]) for system in systems]


def ref_multiwoz(row):
    prompts = [prompt for prompt in row["prompt"] if prompt]
    return [Talk([("system", prompt), *log_of(row)]) for prompt in prompts]


def ref_wizard(row):
    info = info_of(row)
    lines = []
    if info.get("persona"):
        lines.append("You act as a person with the following persona: " + info["persona"])
    lines.append("Together with a user you will talk about: " + info["chosen_topic"])
    if info.get("chosen_topic_passage"):
        lines += ["", "Background info:", *info["chosen_topic_passage"]]
    return [Talk([("system", "\n".join(lines)), *log_of(row)])]


def ref_empathetic(row):
    emotion = info_of(row).get("context")
    question = "Question: How does the user feel in the above conversation?\nAnswer: "
    return [Talk(log_of(row), question + emotion if emotion else "")]


def ref_samsum(row):
    summary = info_of(row).get("summary")
    return [Talk(log_of(row), "Question: Summarize the above conversation.\nSummary: " + summary if summary else "")]


def ref_toolace(row):
    turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
    return [Talk([("system", row["system"]), *(turn for turn in turns if turn[0] in ("user", "assistant", "tool"))])]


def ref_hermes(row):
    roles = {"system": "system", "human": "user", "gpt": "assistant", "tool": "tool"}
    return [Talk([(roles[turn["from"]], turn["value"]) for turn in row["conversations"]])]


def ref_ragbench(row):
    documents = "".join(f"[{place}] {document}\n" for place, document in enumerate(row["documents"], 1))
    return [f"Question: {row['question']}\n\nRetrieved documents:\n{documents}\nAnswer: {row['response']}"]


REFERENCES = {
    "fineweb-edu": lambda row: [row["text"]],
    "fineweb-edu-long": lambda row: [row["text"]],
    "wikipedia": lambda row: ["# " + row["title"] + "\n\n" + row["text"]],
    "simple-wikipedia": lambda row: ["# " + row["title"] + "\n\n" + row["text"]],
    "gsm8k": lambda row: ["Problem: " + row["question"] + "\n\nSolution: " + row["answer"]],
    "math": lambda row: [
        f"Problem ({row.get('type') or 'Math'}, {row.get('level') or 'Unknown'}): {row['problem']}\n\n"
        f"Solution: {row['solution']}"
    ],
    "openmath-instruct-1": lambda row: [
        "Problem: " + row["question"] + "\n\nCorrect generated solution: " + row["generated_solution"]
    ],
    "openmath-instruct-2": lambda row: ["Problem: " + row["problem"] + "\n\nSolution: " + row["generated_solution"]],
    "ecqa": ref_ecqa,
    "cosmopedia-wikihow": lambda row: [row["text"]],
    "stackexchange": ref_stackexchange,
    "swe-bench": lambda row: [
        f"Repository: {row['repo']}\n\nIssue: {row['problem_statement']}\n\nSolution:\n{row['patch']}"
    ],
    "code-contests": ref_code_contests,
    "codesearchnet": lambda row: [row["whole_func_string"]],
    "toolace": ref_toolace,
    "hermes-function-calling": ref_hermes,
    "glaive-function-calling": ref_glaive,
    "generics-kb": lambda row: [row["generic_sentence"]],
    "openbookqa": ref_openbookqa,
    "soda": ref_soda,
    "multiwoz": ref_multiwoz,
    "wizard-of-wikipedia": ref_wizard,
    "sharegpt": lambda row: [Talk(log_of(row))],
    "empathetic-dialogues": ref_empathetic,
    "samsum": ref_samsum,
    "rag-dataset-12000": lambda row: [
        f"Context:\n{row['context']}\n\nQuestion: {row['question']}\n\nAnswer: {row['answer']}"
    ],
    "ragbench-hotpotqa": ref_ragbench,
}


def assert_as_expected(name, row, seed=0):
    """The row renders to one of the expectation's alternatives (several, where a choice is drawn)."""
    document = render(name, row, seed)
    expected = REFERENCES[name](row)
    if isinstance(expected[0], str):
        assert type(document) is str
        assert document in expected
    else:
        assert isinstance(document, Segments)
        assert (document.pieces, document.controls) in [talk.segments() for talk in expected]
    return document


# --- the entries themselves ------------------------------------------------------------------------------------


def test_there_is_a_reference_for_every_entry():
    assert set(REFERENCES) == set(catalog.names())
    assert len(REFERENCES) == 27


def table():
    """{name: (purpose, licence, path, config, split, required)} of the contract."""
    if not (SHARED / "datasets.md").exists():
        pytest.skip("the dataset contract is not beside the repository")
    rows = {}
    for line in (SHARED / "datasets.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 6 and cells[0] not in ("name", "---"):
            path, _, rest = cells[3].partition(" (")
            config, _, split = rest.rstrip(")").rpartition(", ")
            rows[cells[0]] = (cells[1], cells[2], path, config or None, split, cells[4].split(", "))
    return rows


def test_metadata_is_the_contracts():
    rows = table()
    assert set(rows) == set(catalog.names())
    for name, (purpose, licence, path, config, split, _) in rows.items():
        entry = catalog.entry(name)
        hub = entry.hub
        assert (entry.purpose, entry.licence) == (purpose, licence), name
        assert (hub.path, hub.config, hub.split) == (path, config, split), name
        assert entry.about and "\n" not in entry.about, name


def test_required_fields_are_the_contracts():
    for name, (*_, required) in table().items():
        # What lies inside `original dialog info` is checked in code.
        fields = [field for field in required if field not in ("narrative", "chosen_topic")]
        assert list(catalog.entry(name).required) == fields


@pytest.mark.parametrize("name", catalog.names())
def test_example_renders(name):
    document = assert_as_expected(name, example(name))
    text = document if isinstance(document, str) else document.text()
    assert text == text.lstrip()


def test_filters():
    filters = {
        "fineweb-edu": {"field": "int_score", "ge": 3, "when_present": True},
        "fineweb-edu-long": {"field": "int_score", "ge": 3, "when_present": True, "min_chars": 120_000},
        "openmath-instruct-1": {"field": "is_correct", "eq": True},
        "generics-kb": {"field": "score", "gt": 0.5},
    }
    for name in catalog.names():
        assert catalog.entry(name).filter == Filter.model_validate(filters.get(name, {})), name


def test_entries_are_resolved_by_name():
    assert catalog.resolve(Dataset(name="x", input="x", template="gsm8k")).purpose == "reasoning"
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        catalog.resolve(Dataset(name="x", input="x", template="gsm8"))


# --- real rows -------------------------------------------------------------------------------------------------


def raw_files():
    """(entry, path) of every file of real rows, the entry named by what stands before the first dot."""
    if not RAW.is_dir():
        return [pytest.param("", None, marks=pytest.mark.skip(f"{RAW} is absent: no real rows to compare with"))]
    paths = sorted([*RAW.glob("*.jsonl*"), *RAW.glob("proxy/*.jsonl*")])
    return [pytest.param(path.name.split(".")[0], path, id=path.name) for path in paths]


def read_rows(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.split(b"\n") if line]


@pytest.mark.parametrize(("name", "path"), raw_files())
def test_real_rows(name, path):
    rows = read_rows(path)
    assert rows
    for row in rows:
        assert_as_expected(name, row)
        if INFO in row:  # the form of the other publication of the same data
            assert_as_expected(name, {**row, INFO: info_of(row)})


# --- fields are data -------------------------------------------------------------------------------------------


def nasty(value, keep=()):
    """`value` with text that means something to templates, chats and line readers in every string but `keep`'s."""
    if isinstance(value, str):
        return NASTY + value + NASTY
    if isinstance(value, list):
        return [nasty(item, keep) for item in value]
    if isinstance(value, dict):
        return {key: item if key in keep else nasty(item, keep) for key, item in value.items()}
    return value


@pytest.mark.parametrize("name", [name for name in catalog.names() if name != "glaive-function-calling"])
def test_contents_are_kept_byte_for_byte(name):
    keep = {"openbookqa": ("answerKey", "label"), "toolace": ("from",), "hermes-function-calling": ("from",)}
    row = nasty(example(name), keep.get(name, ()))
    document = assert_as_expected(name, row)
    if isinstance(document, Segments):
        assert len(document.controls) == 2 * len(document.pieces[1::2])
    if INFO in row:
        assert_as_expected(name, {**row, INFO: json.dumps(row[INFO])})


@pytest.mark.parametrize("name", [name for name in catalog.names() if name != "glaive-function-calling"])
@pytest.mark.parametrize("text", ["\0", "\u2028", "\r", "{{", "{%", "{#", "<|im_end|>", "<|endoftext|>", " ", "None"])
def test_one_odd_text_in_every_field(name, text):
    def fill(value, keep):
        if isinstance(value, str):
            return text
        if isinstance(value, list):
            return [fill(item, keep) for item in value]
        if isinstance(value, dict):
            return {key: item if key in keep else fill(item, keep) for key, item in value.items()}
        return value

    assert_as_expected(name, fill(example(name), ("answerKey", "label", "from")))


def test_glaive_keeps_everything_but_the_literal_end_of_text():
    inner = NASTY.replace("<|endoftext|>", "")
    row = {"system": "SYSTEM: " + NASTY, "chat": f"USER: x{inner}y\nASSISTANT: <functioncall> {NASTY}z <|endoftext|>\n"}
    document = assert_as_expected("glaive-function-calling", row)
    assert document.controls == ["<|im_start|>", "<|im_end|>"] * 3
    assert document.pieces[1::2] == [
        "system\n" + NASTY,
        f"user\nx{inner}y",
        f"assistant\n<functioncall> {inner}z",
    ]


# --- required fields -------------------------------------------------------------------------------------------

OTHER_TYPES = {"string": [1, True, ["x"], {"x": 1}], "list": ["x", 1, {"x": 1}], "object": ["x", 1, ["x"]]}
OTHER_TYPES["strings"] = [*OTHER_TYPES["list"], [1], ["x", None]]
REQUIRED = [(name, field, kind) for name in catalog.names() for field, kind in catalog.entry(name).required.items()]


@pytest.mark.parametrize(("name", "field", "kind"), REQUIRED)
def test_required_fields_are_checked(name, field, kind):
    empty = {"string": "", "list": [], "strings": [], "object": {}}[kind]
    assert outcome(name, without(example(name), field)) == ("missing_field",)
    assert outcome(name, example(name, **{field: None})) == ("null_field",)
    assert outcome(name, example(name, **{field: empty})) == ("empty_field",)
    for value in OTHER_TYPES[kind]:
        assert outcome(name, example(name, **{field: value})) == ("wrong_type",)


OPTIONAL = [(name, field, kind) for name in catalog.names() for field, kind in catalog.entry(name).optional.items()]


@pytest.mark.parametrize(("name", "field", "kind"), OPTIONAL)
def test_optional_fields_are_not_needed(name, field, kind):
    for row in (
        without(example(name), field),
        example(name, **{field: None}),
        example(name, **{field: {"string": "", "object": {}}[kind]}),
    ):
        assert_as_expected(name, row)
    for value in OTHER_TYPES[kind]:
        assert outcome(name, example(name, **{field: value})) == ("wrong_type",)


def test_an_empty_row_is_rejected_everywhere():
    for name in catalog.names():
        assert outcome(name, {}) == ("missing_field",)


# --- text entries ----------------------------------------------------------------------------------------------


def test_math_defaults():
    row = {"problem": "P", "solution": "S"}
    assert outcome("math", row) == "Problem (Math, Unknown): P\n\nSolution: S"
    assert outcome("math", {**row, "type": "", "level": None}) == "Problem (Math, Unknown): P\n\nSolution: S"
    assert outcome("math", {**row, "level": "Level 5"}) == "Problem (Math, Level 5): P\n\nSolution: S"


def test_gsm8k_keeps_calculator_notes():
    row = {"question": "2 + 3?", "answer": "<<2+3=5>>5\n#### 5"}
    assert outcome("gsm8k", row) == "Problem: 2 + 3?\n\nSolution: <<2+3=5>>5\n#### 5"


def test_ecqa_defaults():
    row = {"q_text": "Q", "q_ans": "A", "taskB": "B", "q_op1": "one", "q_op2": None, "q_op3": "", "taskA_neg": "N"}
    assert outcome("ecqa", row) == (
        "Question: Q\n\nOptions:\nA) one\nB) (no option)\nC) (no option)\nD) (no option)\nE) (no option)\n\n"
        "Reasoning:\n(no positive reasoning)\nN\n\nConclusion: B\n\nAnswer: A"
    )


def test_ragbench_numbers_its_documents():
    row = {"question": "Q", "documents": ["one", "two\nlines", "{{ three }}"], "response": "R"}
    assert outcome("ragbench-hotpotqa", row) == (
        "Question: Q\n\nRetrieved documents:\n[1] one\n[2] two\nlines\n[3] {{ three }}\n\nAnswer: R"
    )


# --- stackexchange ---------------------------------------------------------------------------------------------


def stack(*answers):
    return {"question": "Q", "answers": [{"text": text, "pm_score": score} for text, score in answers]}


def test_stackexchange_takes_the_best_answer():
    assert outcome("stackexchange", stack(("a", 1), ("b", 5), ("c", -2))) == "Question: Q\n\nAnswer: b"


def test_stackexchange_numbers_ties():
    assert outcome("stackexchange", stack(("a", 2), ("b", 1), ("c", 2))) == "Question: Q\n\nAnswer 1: a\n\nAnswer 2: c"
    ten = stack(*((f"<p>{{{{ {n} }}}}</p>\r\n", 7) for n in range(10)))
    text = assert_as_expected("stackexchange", ten)
    assert text.endswith("\n\nAnswer 10: <p>{{ 9 }}</p>\r\n")


def test_stackexchange_filters_rows_without_a_liked_answer():
    for scores in ([0], [-1, -5], [None], [0, 0, -1]):
        assert outcome("stackexchange", stack(*(("a", score) for score in scores))) == ("filtered", "pm_score")
    assert outcome("stackexchange", {"question": "Q", "answers": [{"text": "a"}]}) == ("filtered", "pm_score")


def test_stackexchange_leaves_answers_without_text_out():
    assert outcome("stackexchange", stack(("", 9), (None, 8), ("b", 1))) == "Question: Q\n\nAnswer: b"
    row = {"question": "Q", "answers": [{"pm_score": 3}, {"text": "b", "pm_score": 3}]}
    assert outcome("stackexchange", row) == "Question: Q\n\nAnswer: b"
    assert outcome("stackexchange", stack(("", 9), ("b", 0))) == ("filtered", "pm_score")
    assert outcome("stackexchange", stack(("", 9), (None, 1))) == ("empty_field",)


@pytest.mark.parametrize("answer", [None, 1, "a", [], {"text": 1}, {"text": "a", "pm_score": "3"}])
def test_stackexchange_rejects_other_shapes(answer):
    assert outcome("stackexchange", {"question": "Q", "answers": [{"text": "a", "pm_score": 1}, answer]}) == (
        "wrong_type",
    )
    assert outcome("stackexchange", stack(("a", True))) == ("wrong_type",)


def test_stackexchange_compares_any_number():
    assert outcome("stackexchange", stack(("a", 1.5), ("b", 1), ("c", -(10**300)))) == "Question: Q\n\nAnswer: a"
    assert outcome("stackexchange", stack(("a", 10**400), ("b", 1e308))) == "Question: Q\n\nAnswer: a"


# --- code contests ---------------------------------------------------------------------------------------------


def contest(*solutions, **fields):
    languages, codes = [language for language, _ in solutions], [code for _, code in solutions]
    return {"name": "N", "description": "D", "solutions": {"language": languages, "solution": codes}, **fields}


def test_code_contests_without_tests():
    expected = "Problem: N\n\nD\n\nExamples:\n(no examples)\n\nSolution (Java):\n```java\nclass A {}\n```"
    for tests in (None, {}, {"input": [], "output": []}, {"input": None, "output": None}):
        assert outcome("code-contests", contest((4, "class A {}"), public_tests=tests)) == expected
    assert outcome("code-contests", contest((4, "class A {}"))) == expected


def test_code_contests_with_tests():
    tests = {"input": ["1 2\n", "{{ 3 }}"], "output": ["3\n", ""]}
    assert outcome("code-contests", contest((2, "int main() {}\n"), public_tests=tests)) == (
        "Problem: N\n\nD\n\nExamples:\nInput: 1 2\n\nOutput: 3\n\n\nInput: {{ 3 }}\nOutput: \n\n"
        "Solution (C++):\n```cpp\nint main() {}\n\n```"
    )


def test_code_contests_takes_the_shortest_solution_and_the_first_on_a_tie():
    row = contest((3, "long one"), (1, "p2"), (3, "bbb"), (3, "aaa"), (0, "?"), (3, ""), (3, None))
    assert outcome("code-contests", row).endswith("Solution (Python3):\n```python\nbbb\n```")


def test_code_contests_filters_other_languages():
    assert outcome("code-contests", contest((1, "print 1"), (0, "?"), (5, "x"))) == ("filtered", "language")
    assert outcome("code-contests", contest((3, ""), (2, None))) == ("filtered", "language")
    assert outcome("code-contests", contest()) == ("filtered", "language")


@pytest.mark.parametrize(
    ("solutions", "code"),
    [
        ({"language": [3]}, "missing_field"),
        ({"solution": ["x"]}, "missing_field"),
        ({"language": [3, 3], "solution": ["x"]}, "wrong_type"),
        ({"language": 3, "solution": "x"}, "wrong_type"),
        ({"language": ["3"], "solution": ["x"]}, "wrong_type"),
        ({"language": [True], "solution": ["x"]}, "wrong_type"),
        ({"language": [None], "solution": ["x"]}, "wrong_type"),
        ({"language": [[]], "solution": ["x"]}, "wrong_type"),
        ({"language": [3], "solution": [1]}, "wrong_type"),
    ],
)
def test_code_contests_rejects_other_shapes_of_solutions(solutions, code):
    assert outcome("code-contests", {"name": "N", "description": "D", "solutions": solutions}) == (code,)


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ({"input": ["1"]}, "missing_field"),
        ({"input": ["1"], "output": []}, "wrong_type"),
        ({"input": [1], "output": ["1"]}, "wrong_type"),
        ({"input": ["1"], "output": [["1"]]}, "wrong_type"),
        ({"input": "1", "output": "1"}, "wrong_type"),
        ([], "wrong_type"),
    ],
)
def test_code_contests_rejects_other_shapes_of_tests(tests, code):
    assert outcome("code-contests", contest((3, "x"), public_tests=tests)) == (code,)


# --- openbookqa ------------------------------------------------------------------------------------------------


def question(labels, texts, key="A"):
    return {"question_stem": "Q", "choices": {"label": labels, "text": texts}, "answerKey": key}


def test_openbookqa_goes_by_label():
    assert outcome("openbookqa", question(list("DCBA"), list("dcba"), "C")) == (
        "Question: Q\n\nA) a\nB) b\nC) c\nD) d\n\nAnswer: C) c"
    )


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (question(list("ABC"), list("abc")), "missing_field"),
        (question(list("ABCD"), list("abcd"), "E"), "missing_field"),
        (question(list("ABCD"), list("abcd"), "a"), "missing_field"),
        (question(list("ABCD"), ["a", "b", "c", None]), "null_field"),
        (question(list("ABCD"), ["a", "b", "c", ""]), "empty_field"),
        (question(list("ABCD"), ["a", "b", "c", 4]), "wrong_type"),
        (question(list("ABCD"), list("abc")), "wrong_type"),
        (question(list("ABCDE"), list("abcde")), "wrong_type"),
        (question(list("ABCC"), list("abcd")), "wrong_type"),
        (question(list("1234"), list("abcd")), "wrong_type"),
        (question([1, 2, 3, 4], list("abcd")), "wrong_type"),
        (question("ABCD", "abcd"), "wrong_type"),
        ({"question_stem": "Q", "choices": {"text": list("abcd")}, "answerKey": "A"}, "missing_field"),
    ],
)
def test_openbookqa_needs_its_four_choices_and_the_key(row, code):
    assert outcome("openbookqa", row) == (code,)


# --- chats with roles --------------------------------------------------------------------------------------------


def said(*turns):
    return [{"from": role, "value": value} for role, value in turns]


def test_toolace_skips_and_counts_unknown_roles():
    skipped = {}
    turns = said(("user", "u"), ("system", "s"), ("User", "U"), (None, "n"), (["user"], "l"), ("assistant", "a"))
    text = outcome("toolace", {"system": "S", "conversations": [*turns, {"value": "v"}]}, skipped=skipped)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    )
    assert skipped == {"unknown_role": 5}


def test_toolace_skips_empty_turns():
    turns = said(("user", "u"), ("assistant", ""), ("tool", None), ("assistant", "a"))
    text = outcome("toolace", {"system": "S", "conversations": [*turns, {"from": "user"}]})
    assert text.count("<|im_start|>") == 3
    for turns in (said(("user", ""), ("assistant", None)), said(("nobody", "x"))):
        assert outcome("toolace", {"system": "S", "conversations": turns}) == ("no_messages",)


@pytest.mark.parametrize("name", ["toolace", "hermes-function-calling"])
@pytest.mark.parametrize("turn", [None, 1, "x", ["x"], {"from": "tool", "value": 1}, {"from": "tool", "value": ["x"]}])
def test_conversations_of_other_shapes_are_rejected(name, turn):
    assert outcome(name, example(name, conversations=[{"from": "user", "value": "u"}, turn])) == ("wrong_type",)


def test_hermes_roles():
    skipped = {}
    turns = said(("system", "S"), ("human", "h"), ("gpt", "<tool_call>g"), ("tool", "t"), ("assistant", "?"))
    assert outcome("hermes-function-calling", {"conversations": turns}, skipped=skipped) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nh<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>g<|im_end|>\n<|im_start|>tool\nt<|im_end|>"
    )
    assert skipped == {"unknown_role": 1}
    assert outcome("hermes-function-calling", {"conversations": said(("system", "S"))}) == ("no_messages",)


def glaive(chat, **fields):
    return outcome("glaive-function-calling", {"chat": chat, **fields})


def test_glaive_cuts_at_the_markers():
    chat = "USER: a\n\n\nASSISTANT: b <|endoftext|>\n\n\nFUNCTION RESPONSE: {c}\n\n\nASSISTANT: d<|endoftext|>\n"
    expected = (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>tool\n{c}<|im_end|>\n<|im_start|>assistant\nd<|im_end|>"
    )
    assert glaive(chat) == expected
    assert glaive(chat, system="SYSTEM: ") == glaive(chat, system="") == glaive(chat, system=None) == expected
    assert glaive(chat, system="SYSTEM: s\n") == "<|im_start|>system\ns\n<|im_end|>\n" + expected
    assert glaive(chat, system="s SYSTEM: ") == "<|im_start|>system\ns SYSTEM: <|im_end|>\n" + expected


def test_glaive_removes_end_of_text_before_it_cuts():
    assert glaive("US<|endoftext|>ER: a<|endoftext|>b") == "<|im_start|>user\nab<|im_end|>"


def test_glaive_skips_empty_pieces_and_counts_text_without_a_role():
    assert glaive("USER:   \nASSISTANT: b USER:") == "<|im_start|>assistant\nb<|im_end|>"
    skipped = {}
    assert outcome("glaive-function-calling", {"chat": "Hello. USER: a"}, skipped=skipped) == (
        "<|im_start|>user\na<|im_end|>"
    )
    assert skipped == {"unknown_role": 1}
    for chat in ("no marker", "USER: ", "<|endoftext|>", "ASSISTANT: <|endoftext|>\n"):
        assert glaive(chat) == ("no_messages",)


# --- DialogStudio ------------------------------------------------------------------------------------------------


def dialog(name, /, **changes):
    return outcome(name, example(name, **changes))


def turn(user, system):
    return {"user utterance": user, "system response": system}


@pytest.mark.parametrize("name", DIALOGSTUDIO)
def test_logs(name):
    row = example(name, log=[turn("", "a"), turn("u", None), {"turn id": 3}, turn("v", "b")])
    document = render(name, row)
    assert [piece for piece in document.pieces if piece.startswith(("user\n", "assistant\n"))] == [
        "assistant\na",
        "user\nu",
        "user\nv",
        "assistant\nb",
    ]
    assert dialog(name, log=[turn("", None), {}]) == ("no_messages",)
    for bad in (None, 1, "x", [], turn(1, "x"), turn("x", ["x"]), turn({"x": 1}, "")):
        assert dialog(name, log=[turn("u", "s"), bad]) == ("wrong_type",)


@pytest.mark.parametrize("name", ["soda", "multiwoz"])
def test_prompts(name):
    assert dialog(name, prompt=[]) == dialog(name, prompt=[None, ""]) == ("empty_field",)
    assert dialog(name, prompt=None) == ("null_field",)
    assert outcome(name, without(example(name), "prompt")) == ("missing_field",)
    assert "P" in dialog(name, prompt=[None, "P", ""])
    for bad in ("P", 1, {"P": 1}, [1], ["P", ["Q"]], [{}]):
        assert dialog(name, prompt=bad) == ("wrong_type",)


def test_soda_system_message():
    log, info = [turn("u", "s")], {"narrative": "N"}
    talk = "\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\ns<|im_end|>"
    assert dialog("soda", log=log, prompt=["P"], **{INFO: info}) == "<|im_start|>system\nN\n\nP<|im_end|>" + talk


NEEDED = [("soda", "narrative"), ("wizard-of-wikipedia", "chosen_topic")]
USED = [
    *NEEDED,
    ("wizard-of-wikipedia", "persona"),
    ("wizard-of-wikipedia", "chosen_topic_passage"),
    ("empathetic-dialogues", "context"),
    ("samsum", "summary"),
]


@pytest.mark.parametrize(("name", "field"), NEEDED)
def test_what_is_needed_of_the_info(name, field):
    info = example(name)[INFO]
    for form in (lambda value: value, json.dumps):
        assert dialog(name, **{INFO: form(without(info, field))}) == ("missing_field",)
        assert dialog(name, **{INFO: form({**info, field: None})}) == ("null_field",)
        assert dialog(name, **{INFO: form({**info, field: ""})}) == ("empty_field",)
    for absent in (None, "", "{", "[]", "null", '"x"', "not JSON", "NaN"):
        assert dialog(name, **{INFO: absent}) == ("missing_field",)
    assert outcome(name, without(example(name), INFO)) == ("missing_field",)


@pytest.mark.parametrize(("name", "field"), [used for used in USED if used not in NEEDED])
def test_what_the_info_may_lack(name, field):
    info = example(name)[INFO]
    for value in ({**info, field: None}, {**info, field: ""} if field != "chosen_topic_passage" else info):
        assert_as_expected(name, example(name, **{INFO: value}))
        assert_as_expected(name, example(name, **{INFO: json.dumps(value)}))
    assert_as_expected(name, example(name, **{INFO: without(info, field)}))
    if name in ("samsum", "empathetic-dialogues"):
        plain = dialog(name, **{INFO: {}})
        assert plain.endswith("<|im_end|>")
        for absent in (None, "", "{", "[]", "null", "not JSON"):
            assert dialog(name, **{INFO: absent}) == plain
        assert outcome(name, without(example(name), INFO)) == plain


@pytest.mark.parametrize(("name", "field"), USED)
def test_info_of_other_types_is_rejected(name, field):
    info = example(name)[INFO]
    for bad in (1, True, {"x": 1}, [1], "x" if field == "chosen_topic_passage" else ["x"]):
        assert dialog(name, **{INFO: {**info, field: bad}}) == ("wrong_type",)
        assert dialog(name, **{INFO: json.dumps({**info, field: bad})}) == ("wrong_type",)
    for bad in (1, True, ["x"]):
        assert dialog(name, **{INFO: bad}) == ("wrong_type",)


def test_wizard_system_message():
    def system(**info):
        return render("wizard-of-wikipedia", example("wizard-of-wikipedia", **{INFO: info})).pieces[1]

    persona, topic = "You act as a person with the following persona: ", "Together with a user you will talk about: "
    assert system(chosen_topic="T") == f"system\n{topic}T"
    assert system(chosen_topic="T", persona="P", chosen_topic_passage=[]) == f"system\n{persona}P\n{topic}T"
    assert system(chosen_topic="T", chosen_topic_passage=["a\n", "", None, " b"]) == (
        f"system\n{topic}T\n\nBackground info:\na\n\n b"
    )


# --- draws -------------------------------------------------------------------------------------------------------


def test_a_draw_follows_from_seed_and_content():
    rows = [example("multiwoz", prompt=[f"p{n}" for n in range(50)], number=number) for number in range(40)]
    first = [outcome("multiwoz", row) for row in rows]
    assert first == [outcome("multiwoz", row) for row in rows]
    assert first == [outcome("multiwoz", dict(reversed(row.items()))) for row in rows], "order of keys"
    other = [outcome("multiwoz", row, seed=1) for row in rows]
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 30
    assert len(set(first)) > 20


def chi_square(counts, shares):
    total = sum(counts.values())
    assert set(counts) == set(shares)
    return sum((counts[key] - total * share) ** 2 / (total * share) for key, share in shares.items())


def languages(*numbers, rows=4000):
    solutions = [(number, "code") for number in numbers]
    found = Counter()
    for index in range(rows):
        text = outcome("code-contests", contest(*solutions, index=index), seed=7)
        found[re.search(r"Solution \((.*)\):", text).group(1)] += 1
    return found


def test_languages_are_drawn_by_weight_among_those_present():
    # 13.8 and 10.8: what 2 and 1 degrees of freedom pass once in a thousand; the seeds are fixed.
    assert chi_square(languages(2, 3, 4), {"C++": 0.25, "Python3": 0.5, "Java": 0.25}) < 13.8
    assert chi_square(languages(4, 3, 1), {"Python3": 2 / 3, "Java": 1 / 3}) < 10.8
    assert chi_square(languages(2, 4, 0), {"C++": 0.5, "Java": 0.5}) < 10.8
    assert languages(1, 2, rows=50) == {"C++": 50}


def test_prompts_are_drawn_evenly():
    for name in ("soda", "multiwoz"):
        found = Counter()
        for index in range(4000):
            document = render(name, example(name, prompt=list("vwxyz"), index=index), seed=3)
            found[document.pieces[1][-1]] += 1
        assert chi_square(found, dict.fromkeys("vwxyz", 0.2)) < 18.5


def test_a_draw_takes_any_record():
    deep = []
    for _ in range(600):
        deep = [deep]
    for odd in (deep, 10**400, 2**70, float("inf")):
        row = example("multiwoz", prompt=["p", "q"], odd=odd)
        assert outcome("multiwoz", row) == outcome("multiwoz", row)


# --- fuzz --------------------------------------------------------------------------------------------------------

ODD = [
    None,
    True,
    False,
    0,
    -1,
    3,
    2.5,
    -1e300,
    10**400,
    "",
    " ",
    "x",
    NASTY,
    "{}",
    "[1]",
    '{"narrative": 1, "chosen_topic": [], "summary": {}, "context": 2}',
    "A",
    "user",
    "USER: ASSISTANT:",
    [],
    [None],
    [[]],
    ["x", 1],
    [{}],
    {},
    {"x": 1},
    {"label": [], "text": []},
    {"language": [3], "solution": [None]},
    {"input": ["x"], "output": []},
    {"user utterance": 1},
    {"from": "gpt", "value": []},
    {"text": "x", "pm_score": 1},
    json.loads("[" * 900 + "]" * 900),
]


def mutate(value, chance: random.Random):
    """A copy of a record with one part removed, doubled, moved or replaced by something odd."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        kind = chance.random()
        if kind < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, key: value[chance.choice(list(value))]}
        return {**value, key: mutate(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.12:
            return value[:place] + value[place + 1 :]
        if kind < 0.24:
            return value[:place] + [chance.choice(ODD)] + value[place:]
        return [*value[:place], mutate(value[place], chance), *value[place + 1 :]]
    if isinstance(value, str) and value.startswith("{") and chance.random() < 0.7:
        try:
            return json.dumps(mutate(json.loads(value), chance))
        except (ValueError, RecursionError):
            return value[: chance.randrange(len(value))]
    if isinstance(value, str) and value and chance.random() < 0.4:
        place = chance.randrange(len(value))
        return value[:place] + chance.choice(["", NASTY, "\0", "USER:", "<|endoftext|>"]) + value[place:]
    return chance.choice(ODD)


def seeds_of_fuzz():
    rows = {name: [example(name)] for name in catalog.names()}
    for name in DIALOGSTUDIO:
        if INFO in rows[name][0]:
            rows[name].append({**rows[name][0], INFO: json.dumps(rows[name][0][INFO])})
    for parameters in raw_files() if RAW.is_dir() else []:
        name, path = parameters.values
        rows[name] += sorted(read_rows(path), key=lambda row: len(json.dumps(row)))[:3]
    return rows


def test_fuzz():
    """Whatever a record holds, it renders, is rejected or is filtered. BEAM_PREP_FUZZ says how many are tried."""
    chance = random.Random(20240607)
    rows, names = seeds_of_fuzz(), catalog.names()
    seen = Counter()
    for number in range(int(os.environ.get("BEAM_PREP_FUZZ", "100000"))):
        name = names[number % len(names)]
        row = chance.choice(rows[name])
        for _ in range(chance.choice((1, 1, 2, 4))):
            mutated = mutate(row, chance)
            row = mutated if isinstance(mutated, dict) else row
        before = json.dumps(row) if number % 64 == 0 else None
        try:
            document = RENDERERS[name](row, Context(number, {}))
        except (Reject, Filtered) as turned_down:
            seen[getattr(turned_down, "code", "filtered")] += 1
            continue
        except Exception as error:
            raise AssertionError(f"record {number} of {name}: {str(row)[:1000]}") from error
        finally:
            assert before is None or json.dumps(row) == before, "the record was changed"
        seen["rendered"] += 1
        pieces = document.pieces if isinstance(document, Segments) else [document]
        assert "".join(pieces).encode()
        if isinstance(document, Segments):
            assert document.controls == ["<|im_start|>", "<|im_end|>"] * (len(document.controls) // 2)
            assert len(pieces) == len(document.controls) + 1 >= 3
    codes = {"missing_field", "null_field", "empty_field", "wrong_type", "no_messages", "filtered", "rendered"}
    assert set(seen) == codes, seen
