"""Quick graphs: Beam builds a graph in half the time when what it asks again and again is answered once.

For one graph of the main job it builds some 400 argument parsers to look at a handful of options, and inspects each
step some ten times for state and timers: half a second.
"""

from __future__ import annotations

import inspect
import types
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate

_Options = TypeVar("_Options", bound=PipelineOptions)
_GRAPHS = 4
"""Options of so many graphs are remembered."""

_make_view, _find_specs, _sign = PipelineOptions.view_as, userstate.get_dofn_specs, core.get_signature
_views: dict[int, tuple[dict[str, Any], dict[type, Any]]] = {}
_specs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_signatures: WeakKeyDictionary[types.FunctionType, inspect.Signature] = WeakKeyDictionary()


def quicken() -> None:
    """Has Beam remember the views of its options, and the state and signatures of its steps."""
    PipelineOptions.view_as = _view_as  # type: ignore[method-assign]
    userstate.get_dofn_specs = _get_dofn_specs
    core.get_signature = _get_signature


def _view_as(self: PipelineOptions, cls: type[_Options]) -> _Options:
    values = self._all_options  # which all views share, and which are all that they hold
    if id(values) not in _views:
        for old in list(_views)[: -_GRAPHS + 1]:
            del _views[old]
        _views[id(values)] = values, {}
    known = _views[id(values)][1]
    if cls not in known:
        known[cls] = _make_view(self, cls)
    return known[cls]


def _get_dofn_specs(dofn: Any) -> Any:
    if dofn not in _specs:
        _specs[dofn] = _find_specs(dofn)
    return _specs[dofn]


def _get_signature(function: Any) -> inspect.Signature:
    if not isinstance(function, types.MethodType) or not isinstance(function.__func__, types.FunctionType):
        return _sign(function)
    if function.__func__ not in _signatures:
        _signatures[function.__func__] = _sign(function)
    return _signatures[function.__func__]
