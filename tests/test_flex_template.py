"""templates/: the files are those of the code, Google's own message types take them, and parameters are arguments."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from beam_prep import arguments
from beam_prep.config import parse_config
from beam_prep.errors import ConfigError
from templates import generate
from templates.bodies import Site, launch, scheduler, specification
from templates.metadata import metadata

ROOT = Path(__file__).resolve().parents[1]
SITE = Site("my-project", "us-central1", "my-bucket", "1")
PARAMETERS = {parameter["name"]: parameter for parameter in metadata()["parameters"]}
TEXT = "datasets:\n- {name: a, text_field: text, input: x.jsonl, weight: 1}\n"


@pytest.mark.parametrize("name", sorted(generate.files(Site())))
def test_files_are_those_of_the_code(name: str) -> None:
    text = (ROOT / "templates" / name).read_text("utf-8")
    assert text == generate.as_text(generate.files(Site())[name]), "run: make templates"


# --- Google's own types ---------------------------------------------------------------------------------------------


def strictly(kind: Any, content: dict[str, Any]) -> Any:
    """The message; an unknown field, a wrong type or an unknown name of an enumeration raises."""
    return json_format.Parse(json.dumps(content), kind.pb()())


@pytest.mark.parametrize("site", [Site(), SITE, SITE._replace(flexrs=False, output="gs://b/o", config="gs://b/c.yaml")])
def test_messages_of_dataflow(site: Site) -> None:
    dataflow = pytest.importorskip("google.cloud.dataflow_v1beta3", reason="google-cloud-dataflow-client is missing")
    template = strictly(dataflow.TemplateMetadata, metadata())
    assert [p.name for p in template.parameters] == list(PARAMETERS)
    assert all(p.label and p.help_text and p.group_name and p.regexes for p in template.parameters)
    assert [p.name for p in template.parameters if not p.is_optional] == ["config"]
    kinds = {p.name: dataflow.ParameterType(p.param_type).name for p in template.parameters}
    assert kinds["config"] == "GCS_READ_FILE" and kinds["tail"] == "ENUM" and kinds["fresh"] == "BOOLEAN"
    assert all(bool(p.enum_options) == (kinds[p.name] == "ENUM") for p in template.parameters)
    spec = strictly(dataflow.ContainerSpec, specification(site))
    assert spec.image == site.image and dataflow.SDKInfo.Language(spec.sdk_info.language).name == "PYTHON"
    request = strictly(dataflow.LaunchFlexTemplateRequest, launch(site)).launch_parameter
    assert request.environment.sdk_container_image == site.image
    assert request.environment.flexrs_goal == (2 if site.flexrs else 0)
    # What the schedule sends is that request.
    body = base64.b64decode(scheduler(site)["httpTarget"]["body"])
    assert json_format.Parse(body, dataflow.LaunchFlexTemplateRequest.pb()()).launch_parameter == request


def test_messages_of_cloud_scheduler() -> None:
    service = pytest.importorskip("google.cloud.scheduler_v1", reason="google-cloud-scheduler is missing")
    job = strictly(service.Job, scheduler(SITE))
    assert service.HttpMethod(job.http_target.http_method).name == "POST"
    assert json.loads(job.http_target.body) == launch(SITE)
    assert job.http_target.uri == (
        "https://dataflow.googleapis.com/v1b3/projects/my-project/locations/us-central1/flexTemplates:launch"
    )
    assert job.attempt_deadline.seconds == 180 and job.retry_config.retry_count == 3


def test_message_of_cloud_build() -> None:
    service = pytest.importorskip("google.cloud.devtools.cloudbuild_v1", reason="google-cloud-build is missing")
    content = yaml.safe_load((ROOT / "templates/cloudbuild.yaml").read_text("utf-8"))
    build = strictly(service.Build, content)
    (step,) = build.steps
    used = set(re.findall(r"\$\{(\w+)\}", " ".join(step.args)))
    assert used == {"_IMAGE", "_TOKENIZER"} and set(build.substitutions) == {"_TOKENIZER"}
    named = {arg.partition("=")[2].partition("=")[0] for arg in step.args if arg.startswith("--build-arg=")}
    assert named <= set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text("utf-8"), re.M))


def test_what_the_types_refuse() -> None:
    """Else the tests above would say nothing."""
    dataflow = pytest.importorskip("google.cloud.dataflow_v1beta3", reason="google-cloud-dataflow-client is missing")
    wrong = metadata()
    wrong["parameters"][0]["helptext"] = "x"
    with pytest.raises(json_format.ParseError, match="helptext"):
        strictly(dataflow.TemplateMetadata, wrong)
    wrong = launch(SITE)
    wrong["launchParameter"]["environment"]["flexrsGoal"] = "COST_OPTIMIZED"
    with pytest.raises(json_format.ParseError, match="flexrsGoal"):
        strictly(dataflow.LaunchFlexTemplateRequest, wrong)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_parameters_are_arguments_and_the_other_way_round() -> None:
    groups = {group.title: group._group_actions for group in arguments.parser()._action_groups}
    job = {action.dest for action in groups[arguments.JOB]}
    assert job == set(PARAMETERS) and all(
        f"--{action.dest}" in action.option_strings for action in groups[arguments.JOB]
    )
    # No argument is anywhere else, but help and those that mean nothing in a cloud.
    others = {action.dest for title, actions in groups.items() if title != arguments.JOB for action in actions}
    assert others == {"help", "runner", "workers", "memory", "carrier"}


def test_defaults_change_nothing() -> None:
    """The console sends them; one for a key of the configuration would override every file's own value."""
    defaults = {name: p["defaultValue"] for name, p in PARAMETERS.items() if "defaultValue" in p}
    assert set(defaults) == set(arguments.SWITCHES)
    sent = [f"--{name}={value}" for name, value in defaults.items()]
    parse = arguments.parser().parse_args
    assert parse(["--config=c", *sent]) == parse(["--config=c"])


def examples(name: str) -> list[str]:
    """Values that the template itself gives for a parameter."""
    parameter = PARAMETERS[name]
    told = re.findall(r"Example: (\S+)$", parameter["helpText"])
    return [*told, *(o["value"] for o in parameter.get("enumOptions", [])), parameter.get("defaultValue", "")]


def accepts(name: str, value: str) -> bool:
    """As Dataflow checks a value: all patterns, the whole value."""
    return all(re.fullmatch(pattern, value) for pattern in PARAMETERS[name]["regexes"])


GOOD = {
    "config": ["gs://b-1/c.yml", "gs://my.bucket.org/a/b/c.yaml"],
    "output": [
        "gs://my-bucket",
        "gs://my-bucket/",
        "gs://b-1/{job_name}/x-{date}",
        "gs://my_bucket/a b".replace(" ", "_"),
    ],
    "tokenizer": ["qwen3", "Qwen/Qwen3-8B", "/opt/tokenizer", "gs://my-bucket/t/tokenizer.json"],
    "total_tokens": ["1", "1000000000", "1.7e9", "1e+9", ".5e9", "2.E10"],
    "max_rejects": ["0", "1", "0.05"],
    "overwrite": ["true", "false"],
}
BAD = {
    "config": ["", "corpus.yaml", "gs://b-1", "gs://b-1/", "gs://b-1/c.json", "gs://B/c.yaml", "s3://b-1/c.yaml",
               "gs://b-1/{date}.yaml", "gs://b-1/c.yaml\nx", "gs://b-1/a b.yaml", "gs:///c.yaml"],
    "output": ["", "out", "/out", "gs://", "gs://b-1/{day}", "gs://b-1/{date", "gs://b-1/}", "gs://b-1/a b", "file://x",
               "gs://-b/x", "gs://b-1/{{date}}", "gs://b-1/\n"],
    "tokenizer": ["", "a b", "a/b/c", "./x", "gs://b-1", "gs://b-1/", "-x", "a/", "http://x/y"],
    "tokenizer_backend": ["", "fast", "autohuggingface", "AUTO"],
    "context_length": ["", "-1", "4k", "4096.0", "1e3", " 1"],
    "seed": ["", "-1", "0x1", "1.0"],
    "packing": ["", "concat|best_fit", "bestfit"],
    "tail": ["", "pads"],
    "dedup": ["", "exact "],
    "max_rejects": ["", "-0.1", "1%", ".", "1e", "nan", "inf"],
    "total_tokens": ["", "1,7e9", "1.7G", "1e1.5", "--1", "e9", "1 000"],
    "max_epochs": ["", "4x", "four"],
    "overwrite": ["", "True ", "yes", "1"],
    "fresh": ["", "TRUE!", "0"],
    "increment": ["", "nightly"],
    "accept_changed_inputs": ["", "all"],
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_patterns(name: str) -> None:
    good = [*filter(None, examples(name)), *GOOD.get(name, [])]
    assert good and BAD[name]
    for value in good:
        assert accepts(name, value), value
        known, rest = arguments.parser().parse_known_args(["--config=c", f"--{name}={value}"])
        assert rest == []
        parse_config(TEXT, overrides=arguments.overrides(vars(known)))
    for value in BAD[name]:
        assert not accepts(name, value), value


@given(st.integers(0, 2**63 - 1), st.floats(1e-9, 1e15), st.integers(1, 10**15))
def test_patterns_take_every_number_that_the_model_takes(seed: int, tokens: float, whole: int) -> None:
    assert accepts("seed", str(seed)) and accepts("context_length", str(seed))
    for text in (repr(tokens), f"{tokens:g}", str(whole), f"{whole:e}"):
        assert accepts("total_tokens", text)
        parse_config(TEXT, overrides={"total_tokens": text, "seed": str(seed)})


@given(st.from_regex(PARAMETERS["total_tokens"]["regexes"][0], fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_patterns_take_nothing_that_is_no_number(text: str) -> None:
    assert float(text) >= 0


@given(st.from_regex(PARAMETERS["output"]["regexes"][0], fullmatch=True))
def test_patterns_take_no_output_that_the_model_refuses(text: str) -> None:
    parse_config(TEXT, overrides={"output": text})


def test_what_is_beyond_patterns_is_refused_by_the_model() -> None:
    for name, value in (("context_length", "1"), ("max_rejects", "2"), ("seed", str(2**63)), ("max_epochs", "0")):
        assert accepts(name, value)
        with pytest.raises(ConfigError, match=f"--{name}"):
            parse_config(TEXT, overrides={name: value})


def test_a_launch_gives_only_what_the_entry_point_takes() -> None:
    parameters = launch(SITE)["launchParameter"]["parameters"]
    assert all(accepts(name, value) for name, value in parameters.items())
    known, rest = arguments.parser().parse_known_args([f"--{name}={value}" for name, value in parameters.items()])
    assert rest == [] and arguments.overrides(vars(known)) == {"output": "gs://my-bucket/corpus/{date}"}


def test_generate_writes_for_a_site(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    generate.main(
        [
            "--to",
            str(tmp_path / "new"),
            "--project=p",
            "--bucket=b",
            "--no-flexrs",
            "--max-workers=3",
            "--schedule=1 1 * * *",
        ]
    )
    written = capsys.readouterr().out.split()
    assert sorted(Path(path).name for path in written) == sorted(generate.files(Site()))
    environment = json.loads((tmp_path / "new/launch.json").read_text())["launchParameter"]["environment"]
    assert environment["maxWorkers"] == 3 and "flexrsGoal" not in environment
    assert json.loads((tmp_path / "new/scheduler.json").read_text())["schedule"] == "1 1 * * *"
    generate.main(["--to", str(tmp_path), "--parameter", "total_tokens=1e9", "--parameter=overwrite=true"])
    parameters = json.loads((tmp_path / "launch.json").read_text())["launchParameter"]["parameters"]
    assert parameters["total_tokens"] == "1e9" and parameters["overwrite"] == "true" and "config" in parameters
    for wrong, message in (("total=1", "is no parameter"), ("total_tokens=1G", "does not fit")):
        with pytest.raises(SystemExit):
            generate.main([f"--parameter={wrong}"])
        assert message in capsys.readouterr().err
    for text in (tmp_path / "new").glob("*.json"):
        assert not re.search("PROJECT|BUCKET", text.read_text())
