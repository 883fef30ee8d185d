"""Lean Beam: importing it without the connectors that a local job never uses.

`import apache_beam` loads clients of Pub/Sub, BigQuery, Dataflow, Cloud Storage and MongoDB, a third of its 1.5 s.
Beam takes their absence for a plain installation of itself, so for the moment of the import they are absent.
"""

from __future__ import annotations

import sys
from types import ModuleType

_CLOUD = "google.cloud"
_ABSENT = (_CLOUD, "apache_beam.io.gcp.bigquery")
_EMPTY = "apache_beam.io.mongodbio"
"""Beam insists on this one, though not on anything in it."""


def import_beam() -> None:
    """Imports Beam for the local runner. What was left out can be imported later; `remote_files` does that."""
    if "apache_beam" in sys.modules:
        return
    # The namespace package is there from the start in some installations.
    known = {name: module for name, module in sys.modules.items() if name == _CLOUD or name.startswith(f"{_CLOUD}.")}
    for name in known:
        del sys.modules[name]
    for name in _ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's mark for what cannot be imported
    sys.modules[_EMPTY] = empty = ModuleType(_EMPTY)
    empty.__all__ = []  # type: ignore[attr-defined]
    try:
        import apache_beam  # noqa: F401
    finally:
        for name in (*_ABSENT, _EMPTY):
            del sys.modules[name]
        sys.modules.update(known)
