"""Keeps a tokenizer in a folder, for an image whose workers ask no network.

`python -m beam_prep.bake_tokenizer NAME DIR`, which the Dockerfile calls.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from beam_prep.errors import BeamPrepError
from beam_prep.tokenizer import TokenizerSpec, local_copy, resolve


def bake(name: str, folder: Path) -> TokenizerSpec:
    """Writes the tokenizer.json of `name` into `folder`; a configuration then says `tokenizer: FOLDER`.

    Args:
      name: what a configuration may say: a bundled name, a Hub id, a folder.

    Raises:
      ConfigError: it is not to be had.
    """
    local_copy(resolve(name, str(folder)), folder)
    return resolve(str(folder))


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status."""
    if len(arguments) != 2:
        print("usage: python -m beam_prep.bake_tokenizer NAME DIR", file=sys.stderr)
        return 2
    name, folder = arguments
    try:
        spec = bake(name, Path(folder))
    except BeamPrepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{name}: {spec.location}, sha256 {spec.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
