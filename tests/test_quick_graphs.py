"""What Beam remembers is what it would find again."""

from __future__ import annotations

import inspect

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, SetupOptions
from apache_beam.transforms.userstate import BagStateSpec, get_dofn_specs

from beam_prep import output_steps, quick_graphs, source_steps
from beam_prep.steps import CountingStep

BAG = beam.DoFn.StateParam(BagStateSpec("bag", beam.coders.BytesCoder()))


class WithState(beam.DoFn):
    def process(self, element, bag=BAG):
        return [element]


class Plain(beam.DoFn):
    def process(self, element, *others, last=None):
        return [element]


STEPS = [
    step
    for module in (source_steps, output_steps)
    for step in vars(module).values()
    if inspect.isclass(step) and issubclass(step, CountingStep)
]


@pytest.mark.parametrize("step", [WithState, Plain, *STEPS])
def test_steps_are_seen_as_they_are(step: type[beam.DoFn]) -> None:
    dofn = step.__new__(step)
    for _ in range(2):  # found, and remembered
        assert quick_graphs._get_dofn_specs(dofn) == quick_graphs._find_specs(dofn)
        for method in (dofn.process, dofn.start_bundle, dofn.setup):
            assert quick_graphs._get_signature(method) == quick_graphs._sign(method)
    assert bool(get_dofn_specs(dofn)[0]) == (step is WithState)


def test_what_is_no_method_is_not_remembered() -> None:
    def one(a: int) -> int:
        return a

    for function in (one, len, lambda a, b: a, CountingStep):
        assert quick_graphs._get_signature(function) == quick_graphs._sign(function)


def test_views_share_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PipelineOptions, "view_as", quick_graphs._view_as)
    for name in "abcdefgh":  # more than are remembered
        options = PipelineOptions(["--experiments", name])
        view = options.view_as(DebugOptions)
        assert view.experiments == [name]
        view.experiments = [*view.experiments, "more"]
        assert options.view_as(SetupOptions).view_as(DebugOptions).experiments == [name, "more"]
        assert PipelineOptions().view_as(DebugOptions).experiments is None
