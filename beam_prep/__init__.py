"""Raw datasets in, packed and tokenized training data out: one Apache Beam graph.

`PackedDataset` reads the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_prep.dataset import PackedDataset

__version__ = "0.1.0"
__all__ = ["PackedDataset", "__version__"]


def __getattr__(name: str) -> Any:
    # On demand, so that the command and the workers, which do not read, start without it.
    if name == "PackedDataset":
        from beam_prep.dataset import PackedDataset

        return PackedDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
