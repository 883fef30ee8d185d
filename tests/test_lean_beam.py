"""Importing Beam without its connectors: they are left out, and can still be had."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEAN = """
import sys
from beam_prep.lean_beam import import_beam
import_beam()
import apache_beam as beam
"""


def python(code: str) -> list[str]:
    """What some code prints, in a process of its own: an import happens once."""
    done = subprocess.run([sys.executable, "-c", LEAN + code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_connectors_are_left_out() -> None:
    left_out = ("google.cloud.storage", "google.cloud.pubsub", "google.cloud.bigquery", "pymongo")
    code = f"print(*[name for name in {left_out!r} if name in sys.modules]); print(beam.__version__)"
    import apache_beam

    assert python(code) == [apache_beam.__version__]


def test_connectors_can_be_had_later() -> None:
    pytest.importorskip("google.cloud.storage")
    code = """
import google.cloud.storage, apache_beam.io.mongodbio, apache_beam.io.gcp.bigquery
from beam_prep.remote_files import _file_systems
print(google.cloud.storage.Client.__name__, apache_beam.io.mongodbio.WriteToMongoDB.__name__)
print(apache_beam.io.gcp.bigquery.WriteToBigQuery.__name__, type(_file_systems().get_filesystem("gs://b/x")).__name__)
"""
    assert python(code) == ["Client", "WriteToMongoDB", "WriteToBigQuery", "GCSFileSystem"]


def test_what_is_imported_already_stays() -> None:
    assert python("import_beam(); print(sys.modules['apache_beam'] is beam)") == ["True"]


def test_a_pipeline_runs() -> None:
    code = """
from beam_prep.runner import LocalRunner
with beam.Pipeline(runner=LocalRunner()) as pipeline:
    _ = pipeline | beam.Create([1, 2]) | beam.Map(lambda x: (0, x)) | beam.GroupByKey() | beam.MapTuple(
        lambda k, v: print(sum(v)))
"""
    assert python(code) == ["3"]
