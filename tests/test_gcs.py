"""gs:// against an emulator: single calls, whole jobs, and an object store that fails in passing."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_job import CONFIG, contents, make_small, start, write_inputs

pytest.importorskip("gcp_storage_emulator", reason="the emulator of gs:// is not installed: pip install '.[test]'")

from apache_beam.internal import pickler  # noqa: E402
from apache_beam.internal.gcp import auth  # noqa: E402
from apache_beam.io.gcp import gcsio_retry  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.portability.api import beam_runner_api_pb2  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # noqa: E402
from dataflow_stub import dataflow_stub  # noqa: E402
from gcs_emulator import ALL_FAULTS, FORBIDDEN, Emulator, EveryNth, Faults, emulated_gcs, no_faults  # noqa: E402
from google.cloud.storage.retry import DEFAULT_RETRY  # noqa: E402
from graph_replay import embed, pickled_functions  # noqa: E402

from beam_prep import PackedDataset, balance, byte_ranges, cli, launch, retries, storage, tokenizer  # noqa: E402
from beam_prep.config import load_config, parse_config  # noqa: E402
from beam_prep.errors import BeamPrepError, ConfigError  # noqa: E402
from beam_prep.sources import UNIT_BYTES, InputFile, split_source  # noqa: E402
from beam_prep.tokenizer import local_copy, resolve  # noqa: E402
from beam_prep.verification import verify  # noqa: E402

BIG = b"".join(bytes([n]) * (1 << 20) for n in range(18))
"""More than one part of an upload, and more than one read."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for credentials, which takes half a minute, and no pauses between attempts."""
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    monkeypatch.setattr(byte_ranges, "_client", None)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.0)
    for policy in (DEFAULT_RETRY, gcsio_retry.DEFAULT_RETRY_WITH_THROTTLING_COUNTER):
        monkeypatch.setattr(policy, "_initial", 0.001)
        monkeypatch.setattr(policy, "_maximum", 0.01)


@pytest.fixture
def gcs() -> Iterator[Emulator]:
    with emulated_gcs("bucket") as emulator:
        yield emulator


# --- single calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_FAULTS)
def test_calls_that_fail_in_passing(gcs: Emulator, kind: str) -> None:
    gcs.faults = faults = EveryNth(3, (kind,))
    names = ["plain", "what? [1] *", "[1]", "ü/漢字.bin"]
    for name in names:
        storage.write_bytes(f"gs://bucket/a/{name}", [name.encode()])
    storage.write_bytes("gs://bucket/a/big", [BIG[:5_000_000], BIG[5_000_000:]])
    listed = [file.path for file in storage.list_files("gs://bucket/a")]
    assert listed == sorted(f"gs://bucket/a/{name}" for name in [*names, "big"])
    assert storage.read_bytes("gs://bucket/a/big") == BIG
    assert storage.read_range("gs://bucket/a/big", (17 << 20) - 3, 5) == BIG[(17 << 20) - 3 :][:5]
    for name in names:
        found = storage.find(f"gs://bucket/a/{name}")
        assert found is not None and found.size == len(name.encode())
        assert storage.match(f"gs://bucket/a/{name}") == [found], "a name that holds glob characters is itself first"
    assert storage.find("gs://bucket/a/none") is None and not storage.exists("gs://bucket/a")
    storage.delete("gs://bucket/a")
    assert gcs.objects("bucket") == {}
    assert faults.made[kind] > 5


@pytest.mark.parametrize("old", [None, b"what was there"])
@pytest.mark.parametrize("size", [10, len(BIG)])
def test_an_upload_that_breaks_off_leaves_what_was_there(gcs: Emulator, old: bytes | None, size: int) -> None:
    """A step may run twice at once: the one that fails must not take away what the other one has written."""
    if old is not None:
        storage.write_bytes("gs://bucket/x", [old])
    with pytest.raises(ZeroDivisionError), storage.write_atomic("gs://bucket/x") as file:
        file.write(BIG[:size])
        raise ZeroDivisionError
    assert gcs.objects("bucket") == ({} if old is None else {"x": old})


def test_what_is_missing_is_said_as_of_a_local_file(gcs: Emulator) -> None:
    for path in ("gs://bucket/none", "gs://elsewhere/none"):
        with pytest.raises(FileNotFoundError, match="none"):
            storage.read_bytes(path)
    with pytest.raises(ConfigError, match=r"gs://bucket/none\.yaml: no such file"):
        load_config("gs://bucket/none.yaml")
    with pytest.raises(ConfigError, match=r"tokenizer 'gs://bucket/none'"):
        resolve("gs://bucket/none")
    text = "datasets: [{name: a, text_field: text, input: 'gs://%s/*.jsonl'}]"
    for bucket in ("bucket", "elsewhere"):
        config = parse_config(text % bucket, overrides={"output": "gs://bucket/out"})
        with pytest.raises(ConfigError, match=f"input 'gs://{bucket}/.*(matches no file|cannot be looked up)"):
            launch.prepare(config, launch.RunOptions())
    assert gcs.objects("bucket") == {}


def test_what_is_forbidden_names_the_object_and_is_not_tried_again(gcs: Emulator) -> None:
    storage.write_bytes("gs://bucket/secret.jsonl", [b"{}\n"])
    gcs.faults = only(lambda method, path: method == "GET", FORBIDDEN)
    before = len(gcs.requests)
    with pytest.raises(PermissionError, match="secret"):
        storage.read_bytes("gs://bucket/secret.jsonl")
    assert len(gcs.requests) == before + 1
    with pytest.raises(BeamPrepError, match="gs://bucket/secret.jsonl"):
        byte_ranges.read_file("gs://bucket/secret.jsonl")


def only(wanted, fault: str) -> Faults:
    """A fault of some requests, for good."""
    return lambda method, path: fault if wanted(method, path) else None


# --- ranges ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 400 << 20), min_size=1, max_size=6))
@settings(max_examples=200)
def test_no_range_of_a_remote_file_is_small(sizes: list[int]) -> None:
    files = [InputFile(n, f"gs://bucket/{n}.jsonl", size, 0.0) for n, size in enumerate(sizes)]
    spans = [span for unit in split_source(0, files) for span in unit.spans]
    for file in files:
        own = [(span.start, span.end) for span in spans if span.file == file.number]
        assert own[0][0] == 0 and own[-1][1] == file.size
        assert [a for a, _ in own[1:]] == [b for _, b in own[:-1]]
        assert len(own) == 1 or all(b - a >= UNIT_BYTES for a, b in own)


# --- whole jobs -----------------------------------------------------------------------------------------------------


def make_few(patch: pytest.MonkeyPatch) -> None:
    """Several shards, but no more: each is a dozen requests."""
    make_small(patch)
    for name in ("MIN_BUCKET_TOKENS", "MAX_BUCKET_TOKENS"):
        patch.setattr(balance, name, 25_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gcs")
    write_inputs(folder)
    local_copy(resolve("qwen3"), folder)
    with pytest.MonkeyPatch.context() as patch:
        make_few(patch)
        start(CONFIG.format(folder=folder), folder / "local")
    return folder


def shards(content: dict[str, str]) -> dict[str, str]:
    """Path → hash of the shards."""
    return {path: digest for path, digest in content.items() if path.endswith(".bin") and "/index" not in path}


def remote_contents(gcs: Emulator) -> dict[str, str]:
    """Path → hash of what lies in the output."""
    return {n.removeprefix("out/"): hashlib.sha256(b).hexdigest() for n, b in gcs.objects("bucket", "out/").items()}


def upload(gcs: Emulator, folder: Path, more: str = "") -> str:
    """Puts inputs and configuration into the bucket; the configuration."""
    for name in ("plain.jsonl", "packed.jsonl.gz", "columns.parquet"):
        storage.write_bytes(f"gs://bucket/in/{name}", [(folder / name).read_bytes()])
    storage.write_bytes("gs://bucket/in/config.yaml", [(CONFIG.format(folder="gs://bucket/in") + more).encode()])
    return "gs://bucket/in/config.yaml"


def command(*words: str) -> tuple[int, str]:
    """(exit status, what it prints)"""
    result = CliRunner().invoke(cli.cli, words, prog_name="beam-prep")
    return result.exit_code, result.output


def test_a_local_job_from_gs_to_gs_beside_faults(gcs: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_few(monkeypatch)
    call = ["run", upload(gcs, folder), "--output", "gs://bucket/out", "--quiet"]
    gcs.faults = faults = EveryNth(7)
    assert command(*call)[0] == 0
    assert len(faults.made) == len(ALL_FAULTS)
    gcs.faults = no_faults
    found = remote_contents(gcs)
    check_against_local(found, folder)
    assert command(*call)[0] == 0 and remote_contents(gcs) == found, "there is nothing to do"


def check_against_local(found: dict[str, str], folder: Path) -> None:
    """The same shards as those of a local run; every file is there, and none beside."""
    local = contents(folder / "local")
    assert shards(found) == shards(local) and len(shards(local)) > 2
    assert set(found) == {*local, "report.html", "run.json"}


def test_a_run_that_was_refused_goes_on(gcs: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer of the Hub, which is kept beside the output, as workers may be anywhere."""
    make_few(monkeypatch)
    monkeypatch.setattr(tokenizer, "_from_hub", lambda name: (folder / "tokenizer.json").read_bytes())
    config = CONFIG.format(folder=folder) + "tokenizer: somebody/qwen3\n"
    gcs.faults = only(lambda method, path: method != "GET" and "val%2Fdocuments" in path, FORBIDDEN)
    with pytest.raises(BeamPrepError, match="gs://bucket/out/val/documents/part-"):
        start(config, "gs://bucket/out")
    assert "_SUCCESS" not in remote_contents(gcs)
    gcs.faults = no_faults
    start(config, "gs://bucket/out")
    local = contents(folder / "local")
    found = remote_contents(gcs)
    assert {path: found[path] for path in shards(local)} == shards(local)
    assert verify("gs://bucket/out") == []


def test_increments(gcs: Emulator) -> None:
    """Two days and a day without anything new, through the carrier that engines have."""

    def day(number: int) -> None:
        lines = [
            json.dumps({"text": f"day {number}, text {n} " * 9}).encode()
            for n in range(150 * number, 150 * number + 200)
        ]
        storage.write_bytes(f"gs://bucket/in/day-{number}.jsonl", [b"\n".join(lines)])

    dataset = "{name: days, text_field: text, input: 'gs://bucket/in/day-*.jsonl'}"
    text = f"context_length: 64\noutput: gs://bucket/out\ndatasets: [{dataset}]\n"
    storage.write_bytes("gs://bucket/in/config.yaml", [text.encode()])
    call = ["run", "gs://bucket/in/config.yaml", "--increment", "--carrier", "engine", "--quiet"]
    day(0)
    assert command(*call)[0] == 0
    before = remote_contents(gcs)
    day(1)
    assert command(*call)[0] == 0
    after = remote_contents(gcs)
    assert shards(before).items() < shards(after).items()
    assert verify("gs://bucket/out") == []
    manifest = json.loads(storage.read_bytes("gs://bucket/out/manifest.json"))
    assert [g["ledger"]["days"]["records"] for g in manifest["generations"]] == [200, 200]
    assert len(PackedDataset("gs://bucket/out/train")) == manifest["outputs"]["train"]["sequences"]
    status, said = command(*call[:-1])
    assert status == 0 and "nothing new" in said
    assert remote_contents(gcs) == after


# --- Dataflow -------------------------------------------------------------------------------------------------------


def test_the_graph_that_dataflow_gets(gcs: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, beside faults; `make cloud-rehearsal` does it as it is, from a wheel and in fresh ones."""
    make_few(monkeypatch)
    storage.write_bytes("gs://bucket/in/tokenizer/tokenizer.json", [(folder / "tokenizer.json").read_bytes()])
    config = upload(gcs, folder, "tokenizer: gs://bucket/in/tokenizer\n")
    gcs.faults = faults = EveryNth(7)
    with dataflow_stub() as dataflow:
        arguments = [
            *("--runner=DataflowRunner", f"--config={config}", "--output=gs://bucket/out", "--job_name=small"),
            *("--project=rehearsal", "--region=europe-west1", "--temp_location=gs://bucket/temp", "--no_auth"),
            *(f"--dataflow_endpoint={dataflow.endpoint}", "--no_save_main_session", "--sdk_container_image=a/b:1"),
        ]
        assert launch.main(arguments) == 0
        (job,) = dataflow.jobs
    (data,) = gcs.objects("bucket", "temp/").values()
    graph = beam_runner_api_pb2.Pipeline.FromString(data)
    assert b"plain.jsonl" not in json.dumps(job.body).encode()
    functions = pickled_functions(graph)
    assert len(functions) > 20
    for _, pickled in functions:
        pickler.loads(pickled)
    embed(graph)
    assert FnApiRunner().run_via_runner_api(graph, PipelineOptions([])).wait_until_finish() == "DONE"
    assert len(faults.made) == len(ALL_FAULTS)
    gcs.faults = no_faults
    check_against_local(remote_contents(gcs), folder)
    check_commands(gcs)
    check_dataset(folder / "local")


def check_commands(gcs: Emulator) -> None:
    """What reads an output does so from gs://, and finds a damage there."""
    for status, words in (
        (0, ["inspect", "gs://bucket/out", "--output", "val", "--sequence", "0"]),
        (0, ["trace", "gs://bucket/out", "1", "--output", "train"]),
        (0, ["view", "gs://bucket/out", "--context-length", "32"]),
        (0, ["verify", "gs://bucket/out"]),
        (1, ["run", "--only-rejected", "gs://bucket/out"]),
    ):
        assert command(*words)[0] == status, (words, command(*words))
    damaged = "train/tokenized-samples/part-00000-of-"
    ((path, data),) = gcs.objects("bucket", f"out/{damaged}").items()
    storage.write_bytes(f"gs://bucket/{path}", [bytes([data[0] ^ 1]), data[1:]])
    status, text = command("verify", "gs://bucket/out")
    assert status == 1 and damaged in text
    storage.write_bytes(f"gs://bucket/{path}", [data])


def check_dataset(local: Path) -> None:
    """The reader gives the same rows from both places."""
    here, there = (PackedDataset(f"{path}/train", extras=("document_ids",)) for path in (local, "gs://bucket/out"))
    assert len(here) == len(there)
    for index in range(0, len(here), 17):
        for key, array in here[index].items():
            assert np.array_equal(there[index][key], array)
