"""Beam's own options: passed through, but a misspelt one is an error and not silently dropped."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from beam_prep.arguments import OVERRIDES, SWITCHES
from beam_prep.errors import ConfigError
from beam_prep.machine import LOCAL_RUNNERS

_OURS = tuple(
    f"--{name}"
    for name in (*OVERRIDES, *SWITCHES, "config", "runner", "workers", "memory", "log-json", "debug", "quiet")
)
_PORTABLE = ("FlinkRunner", "PrismRunner", "PortableRunner")
_EMBEDDED = ("[auto]", "[local]")
_CONFIGURED = ("EXTERNAL", "PROCESS")
"""Environments that say nothing without a configuration."""


class _Parser(argparse.ArgumentParser):
    """Beam's parser, as far as its option classes need it."""

    def add_value_provider_argument(self, *args: Any, **kwargs: Any) -> None:
        """Takes an option whose value may come later (templates)."""
        self.add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"option {message.removeprefix('argument ')}")


def split_arguments(arguments: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(CONFIG, Beam's options) of what a call has beside our own options.

    CONFIG is the first argument that is no option and does not follow one, since that may be its value.

    Raises:
      ConfigError: there is none.
    """
    for index, argument in enumerate(arguments):
        follows = index > 0 and arguments[index - 1].startswith("-") and "=" not in arguments[index - 1]
        if not argument.startswith("-") and not follows:
            return argument, (*arguments[:index], *arguments[index + 1 :])
    raise ConfigError("CONFIG is missing: give the configuration's path first, then options")


def check_runner(name: str) -> None:
    """Checks that there is such a runner.

    Raises:
      ConfigError: Beam does not know it, or lacks what it needs.
    """
    if name in LOCAL_RUNNERS:
        return
    from apache_beam.runners.runner import create_runner

    try:
        create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"--runner {name}: {error}") from None


class CloudOptions(NamedTuple):
    """What beam-prep itself needs to know of Beam's options."""

    job_name: str | None
    template_location: str | None
    """Where the graph is written to, when a template is launched; nothing runs then."""


def cloud_options(arguments: Sequence[str]) -> CloudOptions:
    """Those of Beam's options that beam-prep looks at itself."""
    if not arguments:  # importing Beam takes a second
        return CloudOptions(None, None)
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    parser = _Parser(add_help=False, allow_abbrev=False)
    GoogleCloudOptions._add_argparse_args(parser)
    known, _ = parser.parse_known_args(list(arguments))
    return CloudOptions(known.job_name, known.template_location)


def check_beam_options(arguments: Sequence[str], runner: str) -> None:
    """Checks what is handed to Beam.

    Raises:
      ConfigError: names an option that nobody knows, or a value that does not fit.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in {str(c): c for c in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(arguments))
    known = [*_OURS, *(name for action in parser._actions for name in action.option_strings)]
    for argument in unknown:
        name = argument.split("=", 1)[0]
        if not name.startswith("-"):
            if runner in LOCAL_RUNNERS:
                raise ConfigError(f"argument {argument!r} belongs to no option; a run has one CONFIG")
            continue
        # Another runner may have options of its own, but not one that is nearly ours.
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if near or runner in LOCAL_RUNNERS:
            hint = f"; did you mean {near[0]}?" if near else "; neither beam-prep nor Beam has it"
            raise ConfigError(f"unknown option {name}{hint}")


def check_engine(arguments: Sequence[str], runner: str) -> None:
    """Refuses what an engine could only find out when it is at work.

    Raises:
      ConfigError: names the option that is missing or wrong.
    """
    if runner not in _PORTABLE:
        return
    from apache_beam.options import pipeline_options as beam

    options = beam.PipelineOptions(list(arguments))
    portable, flink = options.view_as(beam.PortableOptions), options.view_as(beam.FlinkRunnerOptions)
    for name, path in (
        ("--prism_location", options.view_as(beam.PrismRunnerOptions).prism_location),
        ("--flink_job_server_jar", flink.flink_job_server_jar),
    ):
        if path and "://" not in path and not os.path.isfile(path):
            raise ConfigError(f"{name} {path}: there is no such file")
    if runner == "FlinkRunner" and not portable.job_endpoint and shutil.which("java") is None:
        raise ConfigError(
            "--runner FlinkRunner needs Java to start Flink's job server: install one, or give --job_endpoint"
        )
    standing = runner == "FlinkRunner" and flink.flink_master not in _EMBEDDED
    if standing and not portable.environment_type and not options.view_as(beam.WorkerOptions).sdk_container_image:
        raise ConfigError(
            "on a standing Flink, Beam would start its own image as a worker, which has no beam-prep: give "
            "--sdk_container_image, or --environment_type LOOPBACK, EXTERNAL or PROCESS (docs/engines.md)"
        )
    if portable.environment_type in _CONFIGURED and not portable.environment_config:
        raise ConfigError(
            f"--environment_type {portable.environment_type} needs --environment_config (docs/engines.md)"
        )
