"""`python -m pipelines.prepare`: keys of the configuration as flags, placeholders, what a template's launch leaves."""

import argparse
import json
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import write_small_data
from hypothesis import given
from hypothesis import strategies as st
from results import shard_hashes

from beam_prep import arguments, launch, placeholders
from beam_prep.beam_options import cloud_options
from beam_prep.cli import cli
from beam_prep.config import Config, load_config, parse_config
from beam_prep.errors import ConfigError
from beam_prep.manifest import read_manifest

TEXT = "datasets:\n- {name: a, text_field: text, input: x.jsonl, weight: 1}\n"
DAY = date(2026, 2, 3)


def kinds_of(key: str) -> list[dict]:
    """What a key may be, null left out."""
    entry = Config.model_json_schema()["properties"][key]
    return [kind for kind in entry.get("anyOf", [entry]) if kind.get("type") != "null"]


# --- flags ----------------------------------------------------------------------------------------------------------


def test_every_key_with_one_value_is_a_flag() -> None:
    single = {"string", "integer", "number"}
    one_value = {key for key in Config.model_fields if {kind.get("type") for kind in kinds_of(key)} <= single}
    assert set(arguments.OVERRIDES) == one_value
    assert {"datasets", "splits", "stages", "views"} == set(Config.model_fields) - one_value


VALUES = {
    "output": ("gs://b/c", "gs://b/c"),
    "tokenizer": ("a/b", "a/b"),
    "tokenizer_backend": ("huggingface", "huggingface"),
    "context_length": ("4096", 4096),
    "seed": ("7", 7),
    "packing": ("best_fit", "best_fit"),
    "tail": ("drop", "drop"),
    "dedup": ("none", "none"),
    "max_rejects": ("0.5", 0.5),
    "total_tokens": ("1.7e9", 1.7e9),
    "max_epochs": ("4", 4.0),
}
WRONG = {
    "output": "gs://b/{day}",
    "tokenizer": "",
    "tokenizer_backend": "fast",
    "context_length": "1",
    "seed": "1.5",
    "packing": "bestfit",
    "tail": "keep",
    "dedup": "fuzzy",
    "max_rejects": "1.5",
    "total_tokens": "1,7e9",
    "max_epochs": "0",
}


@pytest.mark.parametrize("key", arguments.OVERRIDES)
def test_a_flag_takes_the_place_of_the_key(key: str) -> None:
    text, value = VALUES[key]
    for flag in arguments.spellings(key):
        for words in ([f"{flag}={text}"], [flag, text]):
            known, rest = arguments.parser().parse_known_args(["--config", "c.yaml", *words, "--project=p"])
            assert rest == ["--project=p"]
            config = parse_config(TEXT, overrides=arguments.overrides(vars(known)))
            assert getattr(config, key) == value != getattr(parse_config(TEXT), key)
            assert type(getattr(config, key)) is type(value)


@pytest.mark.parametrize("key", arguments.OVERRIDES)
def test_a_wrong_value_names_the_flag(key: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: 1\n{TEXT}")
    assert launch.main(["--config", str(path), f"--{key}={WRONG[key]}"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {path}: 1 error" and second.startswith(f"  `--{key}`: ")
    result = CliRunner().invoke(cli, ["run", str(path), f"--{key}", WRONG[key]])
    assert result.exit_code == 2 and result.stderr.splitlines() == [first, second]


def test_a_flag_that_contradicts_the_file_is_named(tmp_path: Path) -> None:
    """The file's own errors keep their lines beside it."""
    text = "datasets:\n- {name: a, text_field: text, input: x.jsonl}\nviews: [3]\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.yaml", {"total_tokens": "1e9", "context_length": "64"})
    assert "  `--total_tokens`: no dataset has a `weight`" in caught.value.message
    assert "  line 3: `views[0]`" in caught.value.message


def test_switches_take_values_as_dataflow_gives_them() -> None:
    parse = arguments.parser().parse_args
    for name in arguments.SWITCHES:
        given = [getattr(parse(["--config", "c", *words]), name) for words in ([], [f"--{name}"], [f"--{name}=True"])]
        assert given == [False, True, True]
        assert getattr(parse(["--config", "c", f"--{name}=false"]), name) is False
        with pytest.raises(SystemExit):
            parse(["--config", "c", f"--{name}=yes"])


def test_no_abbreviations() -> None:
    """Beam's --max_num_workers must not become our --max_epochs, nor --temp_location our --template."""
    parser = arguments.parser()
    known, rest = parser.parse_known_args(["--config", "c", "--max_e=3", "--see=1", "--out=x"])
    assert rest == ["--max_e=3", "--see=1", "--out=x"] and arguments.overrides(vars(known)) == {}


def test_no_flag_of_ours_is_one_of_beams() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    beams = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    beams.add_value_provider_argument = beams.add_argument  # as Beam's own parser has it
    for options in {str(c): c for c in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(beams)
    ours = {f"--{name}" for name in (*arguments.OVERRIDES, *arguments.SWITCHES, "config")}
    assert not ours & set(beams._option_string_actions)


# --- placeholders ---------------------------------------------------------------------------------------------------


def filled(output: str, job_name: str | None = None) -> str:
    return placeholders.fill(parse_config(TEXT, overrides={"output": output}), job_name, lambda: DAY).output


def test_placeholders() -> None:
    assert filled("gs://b/{date}/{job_name}/x-{date}", "nightly-1") == "gs://b/2026-02-03/nightly-1/x-2026-02-03"
    assert filled("plain") == "plain"
    # From the file as from a flag.
    config = placeholders.fill(parse_config(f"output: 'o/{{date}}'\n{TEXT}"), None, lambda: DAY)
    assert config.output == "o/2026-02-03" and placeholders.fill(config, None) is config


def test_every_worker_sees_the_same_output(tmp_path: Path) -> None:
    config = load_config(str(write_small_data(tmp_path)), {"output": f"{tmp_path}/{{date}}"})
    job = launch.prepare(config, launch.RunOptions()).job
    assert job.output == job.config.output and "{" not in job.output
    assert Path(job.output).is_dir()
    with pytest.raises(ConfigError, match="--job_name"):
        launch.prepare(config.model_copy(update={"output": "{job_name}"}), launch.RunOptions())


def test_the_clock_is_read_once_and_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # where it is tomorrow
    read = []
    monkeypatch.setattr(placeholders, "_utc_today", lambda: read.append(1) or DAY)
    assert placeholders.fill(parse_config(f"output: '{{date}}/{{date}}'\n{TEXT}"), None).output.count("02-03") == 2
    assert read == [1]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("o/{dat}", "unknown placeholder {dat}; did you mean {date}?"),
        ("o/{Date}", "did you mean {date}?"),
        ("o/{time}", "unknown placeholder {time}; "),
        ("o/{}", "unknown placeholder {}"),
        ("o/{date", "a brace without its other half"),
        ("o/date}", "a brace without its other half"),
        ("o/{{date}}", "a brace without its other half"),
        ("o/{date:%Y}", "unknown placeholder {date:%Y}; did you mean {date}?"),
    ],
)
def test_wrong_placeholders(output: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"output: '{output}'\n{TEXT}", "c.yaml")
    assert "line 1: `output`" in caught.value.message and message in caught.value.message
    with pytest.raises(ConfigError, match="`--output`"):
        parse_config(TEXT, "c.yaml", {"output": output})


@pytest.mark.parametrize("name", [None, "", "a/b", "../x", "-x", "a b"])
def test_a_job_name_that_is_no_folder(name: str | None) -> None:
    with pytest.raises(ConfigError, match="--job_name"):
        filled("o/{job_name}", name)


@given(st.text())
def test_any_output_is_filled_or_refused(text: str) -> None:
    try:
        placeholders.check(text)
    except ValueError:
        assert "{" in text or "}" in text
    else:
        assert not set("{}") & set(text.replace("{date}", "").replace("{job_name}", ""))


def test_job_name_of_beams_options() -> None:
    assert cloud_options(["--job_name", "a", "--zone=x"]).job_name == "a"
    assert cloud_options(["--job_name=a", "--template_location=gs://b/t"]) == ("a", "gs://b/t")
    assert cloud_options([]) == cloud_options(["--project=p"]) == (None, None)


# --- the entry point ------------------------------------------------------------------------------------------------


def test_both_commands_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholders, "_utc_today", lambda: DAY)
    config = write_small_data(tmp_path)
    flags = ["--seed=9", "--context_length=32", "--packing", "best_fit", "--job_name=j"]
    output = f"--output={tmp_path}/{{date}}-{{job_name}}"
    assert launch.main(["--config", str(config), output, *flags]) == 0
    made = read_manifest(str(tmp_path / "2026-02-03-j"))
    assert (made.seed, made.context_length) == (9, 32)
    # Launched again on the same day, by the one or the other.
    assert launch.main(["--config", str(config), output, *flags]) == 0
    result = CliRunner().invoke(cli, ["run", str(config), output, *flags])
    assert result.exit_code == 0 and "nothing to do" in result.stdout, result.stderr


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Beam's Dataflow runner without a cloud: what it would stage lies in a folder."""
    from apache_beam.internal.gcp import auth
    from apache_beam.options.pipeline_options import GoogleCloudOptions
    from apache_beam.runners.dataflow.internal import apiclient

    def stage(_client, location, name, stream, **_) -> None:
        data = stream.read() if hasattr(stream, "read") else Path(stream).read_bytes()
        (tmp_path / "staged").mkdir(exist_ok=True)
        (tmp_path / "staged" / name).write_bytes(data)

    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)
    monkeypatch.setattr(apiclient.DataflowApplicationClient, "stage_file_with_retry", stage)
    monkeypatch.setattr(apiclient.DataflowApplicationClient, "_gcs_file_copy", lambda *_, **__: None)
    return tmp_path


def launcher_arguments(folder: Path, config: Path) -> list[str]:
    """As Dataflow's launcher calls the entry point."""
    return [
        f"--config={config}",
        "--overwrite=false",
        "--seed=5",
        "--runner=DataflowRunner",
        "--project=my-project",
        "--region=us-central1",
        "--job_name=nightly",
        "--staging_location=gs://bucket/staging",
        "--temp_location=gs://bucket/tmp",
        "--sdk_container_image=image",
        "--an_option_of_a_later_launcher=1",
        f"--template_location={folder}/job_object",
    ]


def test_a_template_is_launched(offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The graph is written, nothing is run and nothing waited for."""
    monkeypatch.setattr(placeholders, "_utc_today", lambda: DAY)
    config = write_small_data(offline)
    output = offline / "o-{date}-{job_name}"
    assert launch.main([*launcher_arguments(offline, config), f"--output={output}"]) == 0
    assert "graph written to" in capsys.readouterr().out
    job = json.loads((offline / "staged/job_object").read_text())
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["save_main_session"] is False
    # No package either: a worker starts with what its image holds.
    assert {path.name for path in (offline / "staged").iterdir()} <= {
        "pipeline.pb",
        "job_object",
        "submission_environment_dependencies.txt",
    }
    graph = (offline / "staged" / "pipeline.pb").read_bytes()
    assert b"Finalize" in graph and len(graph) < 1_000_000
    assert not (offline / "o-2026-02-03-nightly/_SUCCESS").exists()
    assert json.loads((offline / "o-2026-02-03-nightly/run.json").read_text())["configuration"] == str(config)


def test_a_launch_with_nothing_to_do_succeeds(offline: Path, capsys: pytest.CaptureFixture) -> None:
    """Dataflow takes a launch that writes no graph for a failed one."""
    config = write_small_data(offline)
    assert launch.main([f"--config={config}", "--seed=5", "--carrier=engine"]) == 0
    before = shard_hashes(offline / "out")
    assert launch.main(launcher_arguments(offline, config)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (offline / "staged/job_object").exists() and shard_hashes(offline / "out") == before
    graph = (offline / "staged" / "pipeline.pb").read_bytes()
    assert b"Nothing to do" in graph and b"Finalize" not in graph


def test_mistakes_in_beams_options_are_found_unless_a_launcher_made_them(tmp_path: Path) -> None:
    config = write_small_data(tmp_path)
    assert launch.main(["--config", str(config), "--zzz=1"]) == 2
    assert launch.main(["--config", str(config), "--runner", "DataflowRunner", "--projct=p"]) == 2
    assert launch.main(["--config", str(config), "--runner", "NoRunner"]) == 2
    assert launch.main(["--config", str(config), "--runner", "PrismRunner", "--prism_location=none"]) == 2
    assert launch.main(["--config", str(config), "--memory", "a lot"]) == 2
    result = CliRunner().invoke(cli, ["run", str(config), "--template_location=gs://b/t"])
    assert result.exit_code == 2 and "pipelines.prepare" in result.stderr
    assert not (tmp_path / "out").exists()


def test_plan_takes_the_same_keys(tmp_path: Path) -> None:
    config = write_small_data(tmp_path)
    result = CliRunner().invoke(cli, ["plan", str(config), "--context-length", "32", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["outputs"]["train"]["context_length"] == 32
    result = CliRunner().invoke(cli, ["plan", str(config), "--seed", "8"])
    assert "--seed 8" in result.stdout
    assert load_config(str(config)).seed == 3
