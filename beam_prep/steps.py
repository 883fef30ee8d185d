"""Steps: what the DoFns of the job have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from beam_prep.carrier import Carrier
from beam_prep.errors import BeamPrepError, for_runner
from beam_prep.job import Job
from beam_prep.process_setup import tune_interpreter
from beam_prep.progress import Progress

SHUFFLED = Metrics.counter("shuffle", "bytes")
"""What an engine's shuffle carries for us; its own keys and frames come on top."""


class CountingStep(beam.DoFn):
    """A DoFn of the job; its methods are `guarded`. The steps of a single source hold no more than they need."""

    def __init__(self, carrier: Carrier):
        self._carrier = carrier

    def setup(self) -> None:
        """Opens what a worker needs."""
        tune_interpreter()
        self._progress = Progress(self._carrier.work)


class Step(CountingStep):
    """A DoFn that needs the job, though not its templates."""

    def __init__(self, job: Job):
        super().__init__(job.carrier)
        self._job = job.core()


def guarded(method: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
    """Marks user errors so that they are found again in whatever the runner makes of them."""

    @functools.wraps(method)
    def generator(self: CountingStep, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from method(self, *args, **kwargs) or ()
        except BeamPrepError as error:
            raise for_runner(error) from error

    return generator
