"""The Dockerfile: linted, its versions those of the project, its context whole; and how its steps are carried out.

`make image-check` carries them out in a clean environment, which takes minutes.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beam_prep import bake_tokenizer
from beam_prep.errors import ConfigError
from beam_prep.tokenizer import BUNDLED, resolve
from templates.check_image import python_of
from templates.dockerfile_steps import StepError, carry_out, context_files, read_steps

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def hadolint(folder: Path) -> subprocess.CompletedProcess:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed")
    call = [program, "--no-color", "Dockerfile"]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    done = hadolint(ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN apt-get install python3\n")
    assert hadolint(tmp_path).returncode != 0  # it would, if there were something


def test_versions() -> None:
    """The Beam of the base image is the one that constraints.txt installs over it; nothing floats."""
    pinned = dict(re.findall(r"^ARG ([A-Z]+)=([\w.]+)$", DOCKERFILE, re.M))
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    assert re.search(rf"^apache-beam=={re.escape(pinned['BEAM'])}$", constraints, re.M)
    major, minor = map(int, pinned["PYTHON"].split("."))
    assert (3, 10) <= (major, minor) < (3, 13)
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert len(images) == 2 and all(re.search(r":\$\{(BEAM|LAUNCHER)\}$", image) for image in images)
    assert f"python{major}{minor}-template-launcher" in images[0]


def test_the_launcher_finds_what_it_needs() -> None:
    variables = dict(re.findall(r"^(?:ENV| +) ?([A-Z_]+)=(\S+)", DOCKERFILE, re.M))
    assert variables["FLEX_TEMPLATE_PYTHON_PY_FILE"] == "/template/pipelines/prepare.py"
    assert variables["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] == "1"
    assert "FLEX_TEMPLATE_PYTHON_REQUIREMENTS_FILE" not in DOCKERFILE
    assert "FLEX_TEMPLATE_PYTHON_SETUP_FILE" not in DOCKERFILE
    assert DOCKERFILE.rstrip().endswith('ENTRYPOINT ["/opt/apache/beam/boot"]')
    assert "/opt/google/dataflow/python_template_launcher" in DOCKERFILE


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git checkout")
def test_the_context_is_what_is_installed_and_no_more() -> None:
    pytest.importorskip("docker", reason="docker (the Python package) is missing")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {"setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"}
    wanted = {path for path in listed if path in top or path.startswith(("beam_prep/", "pipelines/"))}
    found = context_files(ROOT)
    assert wanted <= found
    assert not [path for path in found if "__pycache__" in path or path.endswith(".pyc")]
    assert {path.partition("/")[0] for path in found} <= {*top, "beam_prep", "pipelines", "Dockerfile", ".dockerignore"}
    copied = {word for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.M) for word in line.split()}
    assert {path.partition("/")[0] for path in copied} == {*top, "beam_prep", "pipelines"}


# --- carrying steps out ---------------------------------------------------------------------------------------------

TOY = """\
ARG VERSION=1
FROM base:${VERSION} AS other
FROM base:${VERSION}
COPY --from=other /bin/tool /bin/tool
# A comment
WORKDIR /work
COPY one.txt two.txt ./
COPY folder inside
COPY one.txt /etc/renamed.txt
ARG WORD="hello there"
ARG EMPTY
ENV PLACE=/opt/place \\
    GREETING="${WORD}!"
RUN mkdir -p "${PLACE}" \\
    && echo "${GREETING} ${VERSION-unset} ${EMPTY}" > "${PLACE}/said"
WORKDIR inside
RUN ls > ../listing
ENTRYPOINT ["/boot"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    pytest.importorskip("docker", reason="docker (the Python package) is missing")
    pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is missing")
    folder = tmp_path / "context"
    (folder / "folder/deep").mkdir(parents=True)
    for name in ("one.txt", "two.txt", "secret.txt", "folder/a.py", "folder/a.pyc", "folder/deep/b.py"):
        (folder / name).write_text(name)
    (folder / ".dockerignore").write_text("# all but\n**\n!one.txt\n!two.txt\n!folder\n**/*.pyc\n")
    return folder


def carried_out(context: Path, text: str, **arguments: str):
    (context / "Dockerfile").write_text(text)
    root = context.parent / "root"
    root.mkdir()
    said: list[str] = []
    outside = {"PATH": os.environ["PATH"]}
    return root, carry_out(read_steps(context / "Dockerfile"), context, root, arguments, outside, said.append)


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
def test_steps(context: Path) -> None:
    root, done = carried_out(context, TOY)
    files = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert files == {
        "work/one.txt": "one.txt",
        "work/two.txt": "two.txt",
        "work/inside/a.py": "folder/a.py",
        "work/inside/deep/b.py": "folder/deep/b.py",
        "etc/renamed.txt": "one.txt",
        "opt/place/said": "hello there! unset \n",  # an ARG before FROM is not seen by RUN
        "work/listing": "a.py\ndeep\n",
    }
    assert done.versions == {"VERSION": "1"} and done.environment["PLACE"] == f"{root}/opt/place"
    assert done.left_out == ["FROM base:1 AS other", "FROM base:1", "COPY --from=other /bin/tool /bin/tool"]


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
def test_build_arguments(context: Path) -> None:
    root, done = carried_out(context, TOY, WORD="bye", VERSION="2")
    assert (root / "opt/place/said").read_text() == "bye! unset \n" and done.left_out[1] == "FROM base:2"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("COPY secret.txt .", "line 2, COPY: secret.txt: not in the build context"),
        ("COPY folder/a.pyc .", "not in the build context"),
        ("RUN echo broken && exit 3", "line 2, RUN: exit status 3\nbroken"),
        ("RUN touch /etc/x", "names /etc/x"),
        ("RUN cat </opt/x", "names /opt/x"),
        ("COPY ${UNSET} .", "UNSET"),
        ("ADD one.txt .", "line 2: ADD cannot be carried out here"),
        ("RUN true\nFROM other\nRUN true", "line 2, RUN: in another stage"),
    ],
)
def test_steps_that_fail(context: Path, step: str, message: str) -> None:
    with pytest.raises(StepError) as caught:
        carried_out(context, f"FROM base\n{step}\n")
    assert message in str(caught.value)


def test_an_interpreter_is_always_found(capsys: pytest.CaptureFixture) -> None:
    assert python_of({"PYTHON": "2.99"}) == sys.executable and "2.99 is not installed" in capsys.readouterr().out


# --- the tokenizer that is kept in the image ------------------------------------------------------------------------


def test_bake_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "opt/tokenizer"
    assert bake_tokenizer.main(["qwen3", str(folder)]) == 0
    assert BUNDLED["qwen3"] in capsys.readouterr().out
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == BUNDLED["qwen3"]
    baked, bundled = resolve(str(folder)), resolve("qwen3")
    # So that a run with the one goes on, or is done, with the other.
    assert baked._replace(name="", location="") == bundled._replace(name="", location="")
    assert bake_tokenizer.bake(str(folder), tmp_path / "again").sha256 == bundled.sha256


def test_bake_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert bake_tokenizer.main([str(tmp_path / "none"), str(tmp_path / "t")]) == 2
    assert capsys.readouterr().err.startswith("error: tokenizer ")
    assert bake_tokenizer.main([]) == 2 and "usage:" in capsys.readouterr().err
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigError):
        bake_tokenizer.bake(str(tmp_path / "x"), tmp_path / "t")
    assert not (tmp_path / "t").exists()
