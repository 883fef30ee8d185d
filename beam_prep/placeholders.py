"""Placeholders in `output`, `{date}` and `{job_name}`: filled in once, where a run is submitted.

What they stand for travels to the workers as plain text, so that none of them reads a clock.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING

from beam_prep.errors import ConfigError

if TYPE_CHECKING:
    from beam_prep.config import Config

DATE, JOB_NAME = "date", "job_name"
KNOWN = {DATE: "the day of the submission, UTC, as 2026-11-23", JOB_NAME: "what --job_name says"}
"""Placeholder → what it stands for."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check(text: str) -> str:
    """The text, if every brace in it belongs to a known placeholder.

    Raises:
      ValueError: names the placeholder that is not known.
    """
    known = " and ".join(f"{{{name}}} ({meaning})" for name, meaning in KNOWN.items())
    for name in _PLACEHOLDER.findall(text):
        if name not in KNOWN:
            near = difflib.get_close_matches(name.strip().lower(), KNOWN, n=1, cutoff=0.5)
            hint = f"did you mean {{{near[0]}}}? There are" if near else "there are"
            raise ValueError(f"unknown placeholder {{{name}}}; {hint} {known}")
    if re.search("[{}]", _PLACEHOLDER.sub("", text)):
        raise ValueError(f"a brace without its other half; braces are for {known}")
    return text


def fill(config: Config, job_name: str | None, today: Callable[[], date] | None = None) -> Config:
    """The configuration, what stands in its `output` filled in.

    Args:
      job_name: Beam's `--job_name`, if there is one.
      today: by default the day in UTC.

    Raises:
      ConfigError: `{job_name}` is asked for and there is none, or it cannot be a folder's name.
    """
    wanted = set(_PLACEHOLDER.findall(config.output))
    if not wanted:
        return config
    if JOB_NAME in wanted and not job_name:
        raise ConfigError(f"output {config.output}: holds {{job_name}}, but the job has no name; give --job_name NAME")
    if JOB_NAME in wanted and not _PLAIN_NAME.fullmatch(job_name or ""):
        raise ConfigError(f"--job_name {job_name}: becomes part of output; use letters, digits, '.', '_' and '-'")
    day = (today or _utc_today)() if DATE in wanted else None
    values = {DATE: day.isoformat() if day else "", JOB_NAME: job_name or ""}
    return config.model_copy(update={"output": _PLACEHOLDER.sub(lambda found: values[found[1]], config.output)})


def _utc_today() -> date:
    return datetime.now(timezone.utc).date()
