"""Graphs that are built in half the time: what Beam asks its options and steps again and again is answered once.

For one graph of the main job Beam builds some 400 argument parsers to look at a handful of options, and inspects each
step some ten times for state and timers. That is most of a run on little data, and the tests make hundreds of these.
Most runs in processes of their own do without this.
"""

import inspect
import types
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate

_Options = TypeVar("_Options", bound=PipelineOptions)
_GRAPHS = 4
"""Options of so many graphs are remembered."""


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Has Beam remember the views of its options, and the state of its steps."""
    make_view, find_specs, sign = PipelineOptions.view_as, userstate.get_dofn_specs, core.get_signature
    views: dict[int, tuple[dict[str, Any], dict[type, Any]]] = {}
    specs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
    signatures: WeakKeyDictionary[types.FunctionType, inspect.Signature] = WeakKeyDictionary()

    def view_as(self: PipelineOptions, cls: type[_Options]) -> _Options:
        values = self._all_options  # which all views share, and which are all that they hold
        if id(values) not in views:
            for old in list(views)[: -_GRAPHS + 1]:
                del views[old]
            views[id(values)] = values, {}
        known = views[id(values)][1]
        if cls not in known:
            known[cls] = make_view(self, cls)
        return known[cls]

    def get_dofn_specs(dofn: Any) -> Any:
        if dofn not in specs:
            specs[dofn] = find_specs(dofn)
        return specs[dofn]

    def get_signature(function: Any) -> inspect.Signature:
        if not isinstance(function, types.MethodType) or not isinstance(function.__func__, types.FunctionType):
            return sign(function)
        if function.__func__ not in signatures:
            signatures[function.__func__] = sign(function)
        return signatures[function.__func__]

    patch.setattr(PipelineOptions, "view_as", view_as)
    patch.setattr(userstate, "get_dofn_specs", get_dofn_specs)
    patch.setattr(core, "get_signature", get_signature)
