"""Errors of a user's making come through a runner as they are."""

import pickle

import pytest

from beam_prep.errors import BeamPrepError, ConfigError, for_runner, from_runner


@pytest.mark.parametrize("kind", [BeamPrepError, ConfigError])
@pytest.mark.parametrize("message", ["a.jsonl: truncated", "two\nlines", "日本 'quoted' [x]", "", "x" * 100_000])
def test_through_somebody_elses_text(kind: type[BeamPrepError], message: str) -> None:
    error = for_runner(kind(message))
    wrapped = RuntimeError(f"Traceback …\n  RuntimeError: {error} [while running 'Read']\nmore [text]")
    for found in (from_runner(error), from_runner(wrapped)):
        assert type(found) is kind
        assert found.message == str(found) == message


def test_as_a_cause_or_itself() -> None:
    inner = ConfigError("inner")
    assert from_runner(inner) is inner
    try:
        try:
            raise inner
        except ConfigError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as outer:
        assert from_runner(outer) is inner


def test_other_errors_are_none_of_ours() -> None:
    assert from_runner(ValueError("[beam-prep-error:]")) is None
    assert from_runner(KeyError("x")) is None


@pytest.mark.parametrize("kind", [BeamPrepError, ConfigError])
def test_pickle(kind: type[BeamPrepError]) -> None:
    again = pickle.loads(pickle.dumps(kind("why")))
    assert (type(again), again.message, again.exit_status) == (kind, "why", kind.exit_status)
    assert (BeamPrepError.exit_status, ConfigError.exit_status) == (1, 2)
