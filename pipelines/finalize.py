"""Finalize without the graph: `python -m pipelines.finalize OUT` writes an output's index again, from its shards.

For an output whose `index/`, views, `report.html` or `_SUCCESS` were lost, in a copy for instance. Every token is
checked against the manifest first. A run that has not finished is another thing: give its command again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.finalize", description=__doc__.splitlines()[0])
    parser.add_argument("output", metavar="OUT", help="The output of a run: a folder, gs://…")
    args = parser.parse_args(argv)
    from beam_prep.errors import BeamPrepError
    from beam_prep.rebuild import rebuild

    try:
        manifest = rebuild(args.output)
    except BeamPrepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    sequences = sum(entry.sequences for entry in manifest.outputs.values())
    print(f"{args.output}: {sequences:,} sequences, index and {len(manifest.outputs)} output(s) as they were")
    return 0


if __name__ == "__main__":
    sys.exit(main())
