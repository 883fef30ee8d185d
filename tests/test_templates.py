"""Templates: declared forms compiled to plain functions, control tokens apart from data, rejects with a code."""

from collections import Counter

import pytest
from pydantic import ValidationError

from beam_prep import catalog
from beam_prep.config import Dataset
from beam_prep.documents import Draw, Filtered, Message, Reject, Segments, chat_segments
from beam_prep.errors import ConfigError
from beam_prep.templates import Context, Template, compile_template, load_function, lookup

SPECIAL = ["<|end|>", "<|end|>+", "<|im_start|>", "<|im_end|>"]


def render(form, record, seed=0, special=SPECIAL, skipped=None):
    template = form if isinstance(form, Template) else catalog.parse_template(form, "t")
    return compile_template(template, special)(record, Context(seed, {} if skipped is None else skipped))


def rejection(form, record):
    with pytest.raises(Reject) as caught:
        render(form, record)
    assert caught.value.message == str(caught.value)
    return caught.value.code


# --- lookup and required fields ----------------------------------------------------------------------------------


def test_lookup():
    record = {"a": {"b": [{"c": 1}, "x"], "n": None}, "a.b": "dotted", "t": "text"}
    assert lookup(record, "t") == "text"
    assert lookup(record, "a.b") == "dotted"
    assert lookup(record, "a.b.0.c") == 1
    assert lookup({"a": record["a"]}, "a.b.1") == "x"
    for path in ("a.n", "a.n.x", "a.x", "x", "t.0", "", "a..b"):
        assert lookup(record, path) is None
    for path in ("a.b.2", "a.b.-1", "a.b.x", "a.b.²"):
        assert lookup({"a": record["a"]}, path) is None
    assert lookup(None, "a") is None


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("string", ["x", " "], [1, True, [], {}]),
        ("list", [[1], [None]], ["x", {}, 1]),
        ("strings", [["x"], ["x", ""]], ["x", [1], ["x", None], {}]),
        ("object", [{"x": 1}], [[], "x", 1]),
        ("number", [0, 1.5, -3], [True, "1", [], {}]),
        ("boolean", [False, True], [0, 1, "true"]),
        ("any", [0, "", [], {}, False], []),
    ],
)
def test_types_of_fields(kind, good, bad):
    required = {"required": {"f": kind}, "text": "x"}
    optional = {"optional": {"f": kind}, "text": "x"}
    for value in good:
        assert render(required, {"f": value}) == render(optional, {"f": value}) == "x"
    for value in bad:
        assert rejection(required, {"f": value}) == rejection(optional, {"f": value}) == "wrong_type"
    assert rejection(required, {}) == "missing_field"
    assert rejection(required, {"f": None}) == "null_field"
    assert render(optional, {}) == render(optional, {"f": None}) == "x"
    if kind in ("string", "list", "strings", "object"):
        empty = {"string": "", "object": {}}.get(kind, [])
        assert rejection(required, {"f": empty}) == "empty_field"
        assert render(optional, {"f": empty}) == "x"


def test_required_fields_may_be_nested():
    form = {"required": ["a.b"], "text": "{{ a.b }}"}
    assert render(form, {"a": {"b": "x"}}) == "x"
    assert rejection(form, {"a": {}}) == rejection(form, {"a": "b"}) == "missing_field"


# --- text --------------------------------------------------------------------------------------------------------

ODD = " {{ 1 }}{% x %}{# y #}\r\n\r\u2028\u00a0\x85\0\ufeff<|end|><|im_end|>&<> "


@pytest.mark.parametrize(
    "text",
    [
        "{{ a }}",
        "\n  {{ a }}\n\n",
        "{% if true %}{{ a }}{% endif %}",
        "{% for x in [a] %}{{ x }}{% endfor %}",
        "{{ a or 'z' }}",
        "{{ b or a }}",
    ],
)
def test_contents_are_kept_and_never_interpreted(text):
    assert render({"text": text}, {"a": ODD}) == ODD
    assert render({"text": text, "required": ["a"]}, {"a": ODD}) == ODD


def test_ends_of_the_template_are_stripped():
    assert render({"text": "\n\n A: {{ a }} \n\n"}, {"a": "x\n"}) == "A: x\n"


@pytest.mark.parametrize("value", [None, "", "x", 0, 1, 2.5, True, "<b>", "'"])
@pytest.mark.parametrize("text", ["<{{ a }}>", "<{{ a or '-' }}>", "{{ a }}{{ a }}", "{{ a or '' }}"])
def test_the_plain_form_says_what_jinja_says(text, value):
    by_jinja = "{% set one = 1 %}" + text
    assert render({"text": text}, {"a": value}) == render({"text": by_jinja}, {"a": value})
    assert render({"text": text}, {}) == render({"text": by_jinja}, {})


def test_lists_and_objects_are_no_text():
    for text in ("{{ a }}", "{{ a or 'x' }}", "{% if true %}{{ a }}{% endif %}"):
        for value in (["x"], {"x": 1}):
            assert rejection({"text": text}, {"a": value}) == "wrong_type"
    assert render({"text": "{{ a | tojson }}"}, {"a": {"x": [1]}}) == '{"x": [1]}'


def test_templates_are_sandboxed():
    with pytest.raises(Exception, match="unsafe"):
        render({"text": "{{ a.__class__.__mro__ }}"}, {"a": "x"})


def test_a_broken_template_is_a_configuration_error():
    for text in ("{{ a", "{% if %}", "{% for x in %}", "{{ a | no_such_filter }}"):
        with pytest.raises(ConfigError, match="template 't'"):
            render({"text": text}, {})


# --- control tokens ------------------------------------------------------------------------------------------------


def test_control_tokens_come_from_the_template_only():
    document = render({"text": "<|im_start|>{{ a }}<|end|>+{{ b }}<|end|>"}, {"a": "x<|end|>y", "b": "<|im_start|>"})
    assert document == Segments(["", "x<|end|>y", "<|im_start|>", ""], ["<|im_start|>", "<|end|>+", "<|end|>"])
    assert document.text() == "<|im_start|>x<|end|>y<|end|>+<|im_start|><|end|>"
    assert render({"text": "{{ a }}"}, {"a": "<|end|>"}) == "<|end|>"


def test_control_tokens_in_loops_and_conditions():
    text = "{% for x in a %}{{ x }}<|end|>{% endfor %}{% if b %}<|im_end|>{% endif %}"
    assert render({"text": text}, {"a": ["<|end|>", "2"]}) == Segments(["<|end|>", "2", ""], ["<|end|>"] * 2)
    assert render({"text": text}, {"a": []}) == Segments([""], [])


def test_a_token_is_control_only_if_the_tokenizer_says_so():
    assert render({"text": "{{ a }}<|other|>"}, {"a": "x"}) == "x<|other|>"


def test_tokenizers_with_many_special_tokens():
    special = [f"<unused{n}>" for n in range(7000)]
    document = render({"text": "{{ a }}<unused6999>{{ a }}<unused69>"}, {"a": "x\ue000\uf462"}, special=special)
    assert document == Segments(["x\ue000\uf462", "x\ue000\uf462", ""], ["<unused6999>", "<unused69>"])


# --- chats ---------------------------------------------------------------------------------------------------------


def test_chatml():
    document = chat_segments([Message("system", "s"), Message("user", ""), Message("user", "u<|im_end|>")], "\n\nx")
    assert document.text() == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|><|im_end|>\n\nx"
    assert document.pieces == ["", "system\ns", "\n", "user\nu<|im_end|>", "\n\nx"]
    for messages in ([], [Message("system", "s")], [Message("user", "")]):
        with pytest.raises(Reject, match="no message"):
            chat_segments(messages)


CHAT = {"chat": {"messages": "m", "system": "{{ s }}", "after": "{% if z %}Z: {{ z }}{% endif %}"}}


def test_chat_parts_are_optional():
    turns = [{"role": "user", "content": "u"}]
    bare = "<|im_start|>user\nu<|im_end|>"
    assert render(CHAT, {"m": turns}).text() == render(CHAT, {"m": turns, "s": "", "z": None}).text() == bare
    full = render(CHAT, {"m": turns, "s": "S\n", "z": "z\n"})
    assert full.text() == f"<|im_start|>system\nS\n<|im_end|>\n{bare}\n\nZ: z\n"
    assert full.controls == ["<|im_start|>", "<|im_end|>"] * 2


def test_chat_roles():
    skipped = {"unknown_role": 1}
    turns = [{"who": who, "says": "x"} for who in ("bot", "user", None, 3, ["bot"])] + [{"says": "x"}]
    form = {"chat": {"messages": "a.m", "role": "who", "content": "says", "roles": {"bot": "assistant"}}}
    assert render(form, {"a": {"m": turns}}, skipped=skipped).text() == "<|im_start|>assistant\nx<|im_end|>"
    assert skipped == {"unknown_role": 6}
    with pytest.raises(Reject, match="no message"):
        render(form, {"a": {"m": turns[1:]}}, skipped=skipped)
    assert skipped == {"unknown_role": 6}, "turns of a rejected record are not counted"


def test_chat_pairs():
    form = {"chat": {"messages": "m", "pairs": {"user": "q", "assistant": "a"}}}
    document = render(form, {"m": [{"q": "1", "a": "2"}, {"q": None}, {"a": "3"}]})
    assert document.pieces[1::2] == ["user\n1", "assistant\n2", "assistant\n3"]


def test_chat_shapes():
    turn = {"role": "user", "content": "u"}
    for messages in (None, "x", {}, 1, [turn, None], [turn, "x"], [turn, []], [{"role": "user", "content": 1}]):
        assert rejection(CHAT, {"m": messages}) == "wrong_type"
    assert rejection(CHAT, {}) == "wrong_type"
    assert rejection(CHAT, {"m": []}) == rejection(CHAT, {"m": [], "s": "x"}) == "no_messages"
    assert rejection(CHAT, {"m": [turn], "s": ["x"]}) == "wrong_type"


def test_chats_need_their_control_tokens():
    with pytest.raises(ConfigError, match=r"no <\|im_start\|> and <\|im_end\|>"):
        render(CHAT, {}, special=["<|end|>"])
    for key in ("system", "after"):
        with pytest.raises(ConfigError, match=rf"chat\.{key} writes <\|end\|>"):
            render({"chat": {"messages": "m", key: "{{ s }}<|end|>"}}, {})


def test_unknown_roles_in_a_template():
    for chat in ({"roles": {"bot": "robot"}}, {"pairs": {"bot": "a"}}):
        with pytest.raises(ConfigError, match="'system', 'user', 'assistant' or 'tool'"):
            render({"chat": {"messages": "m", **chat}}, {})


# --- code ----------------------------------------------------------------------------------------------------------


def upper(record, draw):
    return {"a": record["a"].upper(), "n": draw.choice([1])}


def answer(record):
    return record["answer"]


def test_prepare_says_what_the_template_sees():
    form = {"required": ["a"], "prepare": f"{__name__}:upper", "text": "{{ a }}{{ n }}{{ other }}"}
    record = {"a": "x", "other": "y"}
    assert render(form, record) == "X1"
    assert record == {"a": "x", "other": "y"}
    assert rejection(form, {"a": 1}) == "wrong_type"


def test_prepare_need_not_pass_a_required_field_on():
    form = {"required": ["b"], "prepare": f"{__name__}:upper", "text": "{{ b }}"}
    assert render(form, {"a": "x", "b": "y"}) == ""


def test_functions():
    template = Template(name="f", function=f"{__name__}:answer")
    segments = Segments(["a", ""], ["<|end|>"])
    for value in ("text", segments):
        assert render(template, {"answer": value}) == value
    for message in (["user", "u"], ("user", "u"), {"role": "user", "content": "u"}):
        assert render(template, {"answer": [message]}).text() == "<|im_start|>user\nu<|im_end|>"
    with pytest.raises(Filtered):
        render(template, {"answer": None})
    for bad in (1, {"a": 1}, [1], ["ab"], [("user",)], [("robot", "x")], [("user", 1)], [([], "x")], [{}]):
        assert rejection(template, {"answer": bad}) == "wrong_type"
    assert rejection(template, {"answer": []}) == "no_messages"
    with pytest.raises(ConfigError, match="ChatML"):
        render(template, {"answer": [("user", "u")]}, special=[])
    with pytest.raises(KeyError):
        render(template, {})


def test_functions_that_cannot_be_found():
    for reference in ("no_such_module:f", f"{__name__}:no_such_function", "no_function", ":f"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            load_function(reference)


# --- the form of a template ------------------------------------------------------------------------------------------


def test_exactly_one_form():
    for form in ({}, {"text": "x", "function": "m:f"}, {"text": "x", "chat": {"messages": "m"}}):
        with pytest.raises(ConfigError, match="exactly one of text, chat and function"):
            catalog.parse_template(form, "t")


def test_mistakes_in_a_template_are_named():
    with pytest.raises(ConfigError, match="purposes: unknown key; did you mean `purpose`"):
        catalog.parse_template({"text": "x", "purposes": "grammar"}, "t")
    with pytest.raises(ConfigError, match=r"required\.a: unknown type 'str'"):
        catalog.parse_template({"text": "x", "required": {"a": "str"}}, "t")
    with pytest.raises(ConfigError, match=r"optional\.a: unknown type 'text'"):
        catalog.parse_template({"text": "x", "optional": {"a": "text"}}, "t")
    with pytest.raises(ConfigError, match="is a mapping"):
        catalog.parse_template(["x"], "t")
    with pytest.raises(ValidationError):
        Template(name="t", text="x", filter={"min_chars": -1})


def test_templates_are_resolved(tmp_path):
    (tmp_path / "my.yaml").write_text("text: '{{ a }}!'", encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("text: [", encoding="utf-8")

    def resolved(**fields):
        return catalog.resolve(Dataset(name="d", input="x", **fields), tmp_path)

    assert render(resolved(template="my.yaml"), {"a": "x"}) == "x!"
    assert render(resolved(template={"text": "{{ a }}?"}), {"a": "x"}) == "x?"
    assert render(resolved(template=f"{__name__}:answer"), {"answer": "x"}) == "x"
    assert render(resolved(text_field="a"), {"a": "x"}) == "x"
    assert render(resolved(text_field="a.b c"), {"a": {"b c": "x"}}) == "x"
    assert rejection(resolved(text_field="a.b"), {"a": {}}) == "missing_field"
    for template, message in (("none.yaml", "does not exist"), ("broken.yaml", "not valid YAML")):
        with pytest.raises(ConfigError, match=message):
            resolved(template=template)


# --- draws -----------------------------------------------------------------------------------------------------------


def test_draws_follow_from_seed_content_and_call():
    record = {"a": 1, "b": ["x"]}
    numbers = [Draw(seed, {**record, "n": n}).uniform() for seed in range(30) for n in range(30)]
    assert len(set(numbers)) == 900
    assert all(0 <= number < 1 for number in numbers)
    assert 0.45 < sum(numbers) / 900 < 0.55
    draw, same = Draw(5, record), Draw(5, {"b": ["x"], "a": 1})
    calls = [draw.uniform() for _ in range(3)]
    assert calls == [same.uniform() for _ in range(3)]
    assert len(set(calls)) == 3


def test_choices():
    assert Draw(0, {}).choice(["only"]) == "only"
    even = Counter(Draw(1, {"n": n}).choice("abcd") for n in range(4000))
    assert all(880 < even[letter] < 1120 for letter in "abcd")
    weighted = Counter(Draw(1, {"n": n}).choice("abc", [6, 3, 1]) for n in range(4000))
    assert 2280 < weighted["a"] < 2520
    assert 1080 < weighted["b"] < 1320
    assert 320 < weighted["c"] < 480
    assert {Draw(1, {"n": n}).choice("abc", [0, 1, 0]) for n in range(100)} == {"b"}


@pytest.mark.parametrize("seed", [0, 1, 2**62, 2**63 - 1])
def test_any_seed_draws(seed):
    assert 0 <= Draw(seed, {"a": "ü"}).uniform() < 1
