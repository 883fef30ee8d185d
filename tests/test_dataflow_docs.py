"""docs/dataflow.md: every command of it is read by the program that it calls, as far as that is installed."""

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from typing import Any

import pytest
from google.protobuf import json_format

from beam_prep.arguments import OVERRIDES
from beam_prep.beam_options import check_beam_options, split_arguments
from templates import generate
from templates.metadata import metadata

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/dataflow.md").read_text("utf-8")
TOKEN = "gcloud auth print-access-token"


def commands() -> list[list[str]]:
    """All commands of the page in order, in words, their variables filled in."""
    values: dict[str, str] = {}
    found = []
    for block in re.findall(r"^```bash cloud\n(.*?)^```", PAGE, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if TOKEN in line:
                found.append(shlex.split(TOKEN))
            words = shlex.split(Template(line.replace(f"$({TOKEN})", "TOKEN")).safe_substitute(values))
            if words[0] == "export":
                for pair in shlex.split(line)[1:]:
                    name, _, value = pair.partition("=")
                    values[name] = Template(value).substitute(values)
            else:
                found.append(words)
    assert not any("$" in word for words in found for word in words), "a variable that the page does not set"
    return found


COMMANDS = commands()


def calls_of(program: str) -> list[list[str]]:
    return [words[1:] for words in COMMANDS if words[0] == program]


def one(*beginning: str) -> list[str]:
    """The first gcloud call that begins so."""
    return next(words for words in calls_of("gcloud") if words[: len(beginning)] == list(beginning))


# --- gcloud ---------------------------------------------------------------------------------------------------------


class Client:
    """The gcloud of this machine, which reaches nothing but this process."""

    def __init__(self, program: str, folder: Path, endpoint: str):
        self.program = program
        self.root = Path(program).resolve().parents[1]
        self.folder = folder
        self.environment = {
            **os.environ,
            "CLOUDSDK_CONFIG": str(folder / "gcloud"),
            "CLOUDSDK_CORE_PROJECT": "my-project",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_DATAFLOW": endpoint,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDSCHEDULER": endpoint,
        }

    def problems(self, calls: list[list[str]]) -> list[str | None]:
        """What gcloud's own parser and help have against each call."""
        bundled = self.root / "platform/bundledpythonunix/bin/python3"
        python = str(bundled) if bundled.exists() else sys.executable
        done = subprocess.run(
            [python, str(ROOT / "tests/gcloud_parser.py"), str(self.root)],
            input=json.dumps(calls),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 3:
            pytest.skip("this version of gcloud keeps its parser elsewhere")
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def run(self, *words: str) -> str:
        """Its output."""
        done = subprocess.run(
            [self.program, *words], env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@contextlib.contextmanager
def listening(received: list[tuple[str, Any]]) -> Iterator[str]:
    """A server that notes (path, body) of what is posted to it; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path.partition("?")[0], json.loads(body)))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


RECEIVED: list[tuple[str, Any]] = []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the reader of the page stands, with the files that the page's own call makes."""
    folder = tmp_path_factory.mktemp("dataflow")
    (words,) = calls_of("python")
    assert words[:2] == ["-m", "templates.generate"] and words[-2:] == ["--to", "site"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        generate.main(words[2:])
    shutil.copytree(ROOT / "templates", folder / "templates")
    return folder


@pytest.fixture(scope="module")
def gcloud(site: Path) -> Iterator[Client]:
    program = shutil.which("gcloud")
    if program is None:
        pytest.skip("gcloud is not installed")
    if not (Path(program).resolve().parents[1] / "lib/googlecloudsdk").is_dir():
        pytest.skip("gcloud is installed in a way that hides its parser")
    with listening(RECEIVED) as endpoint:
        yield Client(program, site, endpoint)


def test_gcloud_knows_every_command(gcloud: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of("gcloud")
    assert len(calls) > 25
    wrong = [["dataflow", "flex-template", "run", "x", "--template-file-gcs-location=gs://b/t", "--flexrs=yes"]]
    wrong += [["dataflow", "flex-template", "run", "x"], ["scheduler", "jobs", "make"]]
    # Files that a flag names are read when the call is.
    monkeypatch.chdir(gcloud.folder)
    found = gcloud.problems([*calls, *wrong])
    for words, problem in zip(calls, found, strict=False):
        assert problem is None, (words, problem)
    assert all(found[-len(wrong) :])


def test_gcloud_builds_the_template_that_generate_writes(gcloud: Client, site: Path) -> None:
    words = [word for word in one("dataflow", "flex-template", "build") if not word.startswith("gs://")]
    printed = gcloud.run(*words, "gs://my-project-corpora/x.json", "--print-only", "--format=json")
    built = json.loads(json.loads(printed))  # it prints the text that it would upload
    assert built.pop("defaultEnvironment") == {}
    written = json.loads((site / "site/spec.json").read_text())
    assert {**built, "metadata": {"streaming": False, **built["metadata"]}} == written


def test_gcloud_sends_the_schedule_that_generate_writes(gcloud: Client, site: Path) -> None:
    RECEIVED.clear()
    gcloud.run(*one("scheduler", "jobs", "create", "http"))
    ((path, sent),) = RECEIVED
    written = json.loads((site / "site/scheduler.json").read_text())
    del written["description"]
    for job in (sent, written):
        job["httpTarget"]["body"] = json.loads(base64.b64decode(job["httpTarget"]["body"]))
    assert sent == written
    assert written["name"] == path.removeprefix("/v1/") + "/beam-prep-nightly"


def test_gcloud_launches_as_the_schedule_does(gcloud: Client, site: Path) -> None:
    dataflow = pytest.importorskip("google.cloud.dataflow_v1beta3")
    written = json.loads((site / "site/launch.json").read_text())["launchParameter"]
    uri = json.loads((site / "site/scheduler.json").read_text())["httpTarget"]["uri"]
    RECEIVED.clear()
    gcloud.run(*one("dataflow", "flex-template", "run", "beam-prep-cheap"))
    ((path, sent),) = RECEIVED
    assert path == uri.removeprefix("https://dataflow.googleapis.com")
    json_format.ParseDict(sent, dataflow.LaunchFlexTemplateRequest.pb()())
    launch, environment = sent["launchParameter"], sent["launchParameter"]["environment"]
    assert launch["containerSpecGcsPath"] == written["containerSpecGcsPath"]
    # gcloud has no flag for it, so that it goes there as Beam's own option.
    assert launch["parameters"].pop("sdk_container_image") == written["environment"]["sdkContainerImage"]
    assert launch["parameters"] == {"config": written["parameters"]["config"]}
    for key in ("tempLocation", "stagingLocation", "serviceAccountEmail", "machineType", "flexrsGoal"):
        assert environment[key] == written["environment"][key]
    assert environment["ipConfiguration"] == "WORKER_IP_PRIVATE"


# --- the other programs ---------------------------------------------------------------------------------------------


def test_only_these_programs_are_called() -> None:
    assert {words[0] for words in COMMANDS} == {"gcloud", "docker", "curl", "python", "beam-prep"}
    assert [words[0] for words in calls_of("docker")] == ["build", "push"]


def test_curl_sends_the_files_that_generate_writes(site: Path) -> None:
    schedule = json.loads((site / "site/scheduler.json").read_text())
    ends = {
        "site/launch.json": schedule["httpTarget"]["uri"],
        "site/scheduler.json": f"https://cloudscheduler.googleapis.com/v1/{schedule['name'].rpartition('/')[0]}",
    }
    sent = {next(w[1:] for w in words if w.startswith("@")): words[-1] for words in calls_of("curl")}
    assert sent == ends
    for words in calls_of("curl"):
        assert words[:3] == ["--fail", "-X", "POST"] and "Authorization: Bearer TOKEN" in words


def test_beam_knows_the_options_of_a_direct_submission() -> None:
    ((command, *words),) = calls_of("beam-prep")
    config, options = split_arguments(words)
    assert (command, config) == ("run", "corpus.yaml")
    runner = options.index("--runner")
    check_beam_options([*options[:runner], *options[runner + 2 :]], "local")  # which takes no option for granted


def flags_of(words: list[str]) -> dict[str, str]:
    """The flags of a call that have a value."""
    return dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)


def test_launches_give_parameters_of_the_template_and_options_of_beam() -> None:
    patterns = {p["name"]: p["regexes"] for p in metadata()["parameters"]}
    launches = [flags_of(words) for words in calls_of("gcloud") if words[:3] == ["dataflow", "flex-template", "run"]]
    assert len(launches) == 2
    for flags in launches:
        parameters = dict(pair.split("=", 1) for pair in flags["parameters"].split(","))
        options = [f"--sdk_container_image={parameters.pop('sdk_container_image')}"]
        options += [f"--{pair}" for pair in flags.get("additional-pipeline-options", "").split(",") if pair]
        check_beam_options(options, "local")
        for name, value in parameters.items():
            assert all(re.fullmatch(pattern, value) for pattern in patterns[name]), (name, value)


def test_outputs_and_flags_in_the_text() -> None:
    patterns = {p["name"]: p["regexes"] for p in metadata()["parameters"]}
    outputs = [*re.findall(r"^output: (\S+)", PAGE, re.M), *re.findall(r"`output=(gs://BUCKET\S+)`", PAGE)]
    assert len(outputs) == 2
    for output in outputs:
        assert re.fullmatch(patterns["output"][0], output.replace("BUCKET", "my-bucket"))
    sentence = re.search(r"`python -m templates.generate --help` has the rest: (.*?) and so on", PAGE, re.S)
    known = generate.parser().format_help()
    assert sentence and all(flag in known for flag in re.findall(r"`(--[\w-]+)", sentence[1]))


# --- what the text says ---------------------------------------------------------------------------------------------


def test_roles_in_the_table_are_those_that_are_given() -> None:
    given = set()
    for words in calls_of("gcloud"):
        flags = flags_of(words)
        if "role" in flags:
            account = re.fullmatch(r"serviceAccount:(.*)@my-project\.iam\.gserviceaccount\.com", flags["member"])
            given.add((account[1], flags["role"].removeprefix("roles/")))
    told, account = set(), ""
    for line in PAGE.partition("| account | may |")[2].partition("\n\n")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and "---" not in cells[0]:
            account = cells[0].strip("`") or account
            told |= {(account, role) for role in re.findall(r"`([a-zA-Z]+\.[\w.]+)`", cells[1])}
    assert told == given
    made = {words[3] for words in calls_of("gcloud") if words[:3] == ["iam", "service-accounts", "create"]}
    assert made == {account for account, _ in given}


def test_levers_are_flags_of_a_call_on_the_page() -> None:
    table = PAGE.partition("| lever | where |")[2].partition("\n\n")[0]
    called = {word for words in COMMANDS for word in words}
    for flag in re.findall(r"`(--[\w=.-]+)`", table):
        assert any(word == flag or word.startswith(f"{flag}=") for word in called), flag


def test_keys_that_the_text_overrides_are_parameters() -> None:
    inline = re.findall(r"--parameters=config=…,([\w=.,]+)", PAGE)
    assert inline and all(pair.split("=")[0] in OVERRIDES for pair in inline[0].split(","))
