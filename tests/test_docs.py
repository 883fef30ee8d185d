"""README and docs: every block is run, every configuration read, every name that they give is there."""

import gzip
import importlib.util
import json
import logging
import os
import random
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from beam_prep.cli import cli
from beam_prep.config import Config, Dataset, FieldFilter, Filter, Stage, parse_config
from beam_prep.config_reference import reference
from pipelines.finalize import main as finalize

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HAS_TORCH = importlib.util.find_spec("torch") is not None


class Block(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    kind: str
    """What stands behind its fence: language, and what the block is a part of."""
    text: str


def blocks_of(path: Path) -> Iterator[Block]:
    kind, begin, lines = None, 0, []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif kind is None:
            kind, begin, lines = line[3:].strip(), number, []
        else:
            yield Block(str(path.relative_to(ROOT)), begin, kind, "\n".join(lines) + "\n")
            kind = None
    assert kind is None, f"{path}: the block of line {begin} has no end"


BLOCKS = [block for path in PAGES for block in blocks_of(path)]


def blocks(*kinds: str) -> list:
    return [pytest.param(b, id=f"{b.page}:{b.line}") for b in BLOCKS if b.kind in kinds]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the reader of the README stands: my.yaml, data/, and out/, made by README's own call."""
    folder = tmp_path_factory.mktemp("docs")
    numbers = random.Random(1)
    (folder / "data").mkdir()
    for part in range(2):
        with gzip.open(folder / f"data/articles-{part}.jsonl.gz", "wt") as file:
            for n in range(300):
                text = " ".join(f"word{numbers.randint(0, 999)}" for _ in range(numbers.randint(5, 120)))
                row = {"title": f"Article {part} {n}", "text": text, "score": n % 7, "language": "en"}
                file.write(json.dumps(row) + "\n")
    with open(folder / "data/gsm8k.jsonl", "w") as file:
        file.write('{"question": "and the answer?"}\n')
        for n in range(120):
            file.write(
                json.dumps({"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"}) + "\n"
            )
    readme = [b.text for b in BLOCKS if b.page == "README.md" and b.kind == "yaml" and b.text.startswith("# my.yaml")]
    (folder / "my.yaml").write_text(readme[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call = next(c for b in BLOCKS if b.page == "README.md" for c in calls(b) if c[:2] == ["beam-prep", "run"])
        done = CliRunner().invoke(cli, call[1:])
        assert done.exit_code == 0, done.output
    return folder


def calls(block: Block) -> list[list[str]]:
    """The commands of a bash block, in words, without comments."""
    return [words for line in block.text.splitlines() if (words := shlex.split(line, comments=True))]


def test_every_block_is_known() -> None:
    """`bash cloud`: see test_dataflow_docs."""
    known = {"bash", "bash cloud", "python", "yaml", "yaml top-level", "yaml dataset", "text"}
    assert [(b.page, b.line, b.kind) for b in BLOCKS if b.kind not in known] == []
    assert {b.page for b in BLOCKS} >= {"README.md", "docs/training.md", "docs/own-datasets.md", "docs/operations.md"}


# --- configurations -------------------------------------------------------------------------------------------------

DATASET = {"name": "a", "text_field": "text", "input": "data/*.jsonl"}


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_whole_configuration(block: Block) -> None:
    assert parse_config(block.text, f"{block.page}:{block.line}").datasets


@pytest.mark.parametrize("block", blocks("yaml top-level"))
def test_part_of_a_configuration(block: Block) -> None:
    """Beside datasets of the names that it speaks of."""
    part = yaml.safe_load(block.text)
    named = {name for stage in part.get("stages", []) if isinstance(stage, dict) for name in stage.get("datasets", {})}
    datasets = part.get("datasets") or [{**DATASET, "name": name} for name in sorted(named) or ["a"]]
    parse_config(yaml.safe_dump({**part, "datasets": datasets}), f"{block.page}:{block.line}")


@pytest.mark.parametrize("block", blocks("yaml dataset"))
def test_a_dataset(block: Block, workshop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It renders, if its input is there."""
    monkeypatch.chdir(workshop)
    config = tmp_path / "config.yaml"
    dataset = {"name": "a", **yaml.safe_load(block.text)}
    config.write_text(yaml.safe_dump({"datasets": [dataset]}))
    if not list(workshop.glob(dataset["input"])):
        (workshop / dataset["input"]).write_text(
            json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}) + "\n"
        )
    done = CliRunner().invoke(cli, ["render", str(config), "-n", "2"])
    assert done.exit_code == 0, done.output


def keys_of(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_the_reference_is_that_of_the_models() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert page == reference(), "run: python -m beam_prep.config_reference docs/configuration.md"
    titles = {
        Config: "A run",
        Dataset: "datasets",
        Filter: "filter",
        FieldFilter: "fields of a filter",
        Stage: "stages",
    }
    for model, title in titles.items():
        section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        for key in keys_of(model):
            (row,) = [line for line in section.splitlines() if line.startswith(f"| `{key}` |")]
            assert len(row.rpartition(" | ")[2]) > 10, f"{model.__name__}.{key} has no description"


# --- commands -------------------------------------------------------------------------------------------------------

SCRIPTS = {"train_tiny.py", "train_grain.py"}
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
# Exit statuses other than 0: nothing has been mended.
STATUS = {("run", "--only-rejected", "out"): 1}


def check_options(words: list[str]) -> None:
    """A call of beam-prep: the command is there, and every option has its name."""
    name = words[0]
    assert name in cli.commands, f"no such command: {name}"
    command = cli.commands[name]
    known = {o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
    for word in words[1:]:
        if word.startswith("-"):
            assert word.partition("=")[0] in {*known, *command.get_help_option_names(click.Context(command))}, word


def run_command(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        assert rest[0] in TARGETS
    elif program == "pip":
        assert rest[0] == "install" and rest[-1] in (".", "grain", "torch")
    elif program == "python" and rest[0].startswith("examples/"):
        script = ROOT / rest[0]  # tests/test_examples.py runs them
        assert script.name in SCRIPTS
        assert all(f'"{word}"' in script.read_text("utf-8") for word in rest if word.startswith("--"))
    elif words[:3] == ["python", "-m", "pipelines.finalize"]:
        assert finalize(rest[2:]) == 0
    elif program == "beam-prep":
        check_options(rest)
        done = CliRunner().invoke(cli, rest)
        assert done.exit_code == STATUS.get(tuple(rest), 0), (rest, done.output)
    else:
        raise AssertionError(f"a command that the test does not know: {words}")


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands(block: Block, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    for words in calls(block):
        run_command(words)


def inline_calls() -> list:
    found = []
    for path in PAGES:
        prose = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
        found += [(path.name, call) for call in re.findall(r"`(?:\.venv/bin/)?beam-prep ([^`]+)`", prose)]
    return found


@pytest.mark.parametrize(("page", "call"), inline_calls())
def test_commands_in_the_text(page: str, call: str) -> None:
    check_options(shlex.split(call.replace("[", " ").replace("]", " ")))


# --- Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: Block, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import torch" in block.text and not HAS_TORCH:
        compile(block.text, block.page, "exec")
        pytest.skip("torch is not installed")
    monkeypatch.chdir(workshop)
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        exec(compile(textwrap.dedent(block.text), f"{block.page}:{block.line}", "exec"), {"__name__": "docs"})
    finally:  # importing data-forager has every logger of the process print its details
        root.setLevel(level)
        root.handlers[:] = handlers


# --- what the text refers to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), f"{path.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named(path: Path) -> None:
    named = re.findall(
        r"`((?:examples|tests|benchmarks|docs|pipelines|templates)/[\w./-]+\.\w+)", path.read_text("utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_promise_names_tests_that_are_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("## What is promised")[2].partition("\n## ")[0]
    promises = re.split(r"^\d\. ", text, flags=re.M)[1:]
    assert len(promises) >= 5
    for promise in promises:
        references = re.findall(r"`tests/(test_\w+\.py)((?:::\w+)+)`", promise)
        assert references, promise
        for file, names in references:
            source = (ROOT / "tests" / file).read_text("utf-8")
            for name in names.split("::")[1:]:
                assert re.search(rf"^\s*(?:def|class) {name}\b", source, re.M), f"{file}{names}"


def test_figures_of_the_corruptions() -> None:
    """README says how many faults verify is tried with."""
    source = (ROOT / "tests/test_corruptions.py").read_text("utf-8")
    faults = len(re.findall(r'^    "[^"]+": ', source, re.M))
    assert 75 <= faults <= 89, "README says some eighty"


def test_nothing_points_outside() -> None:
    for path in PAGES:
        text = path.read_text("utf-8")
        assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home)/", text), path.name
        assert os.fspath(ROOT) not in text
