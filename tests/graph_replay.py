"""Runs a job graph as it was handed to Dataflow (`pipeline.pb`), with Beam's embedded runner, and nothing else of it.

    python graph_replay.py PIPELINE [--load-only]

Its own process knows the package only as it is installed. The graph's one change: where Dataflow would start a
container, the steps run in this process. Before that, every pickled function of the graph is loaded by itself.
"""

import sys
from pathlib import Path
from typing import Any

from apache_beam.internal import pickler
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def read_graph(path: str) -> Any:
    """The graph in a file."""
    return beam_runner_api_pb2.Pipeline.FromString(Path(path).read_bytes())


def pickled_functions(graph: Any) -> list[tuple[str, bytes]]:
    """(step, pickled function) of every ParDo and combiner of a graph."""
    found = []
    for transform in graph.components.transforms.values():
        urn, payload = transform.spec.urn, transform.spec.payload
        if urn == common_urns.primitives.PAR_DO.urn:
            function = beam_runner_api_pb2.ParDoPayload.FromString(payload).do_fn
        elif urn.startswith("beam:transform:combine"):
            function = beam_runner_api_pb2.CombinePayload.FromString(payload).combine_fn
        else:
            continue
        if function.urn == python_urns.PICKLED_DOFN_INFO or function.urn == python_urns.PICKLED_COMBINE_FN:
            found.append((transform.unique_name, function.payload))
    return found


def embed(graph: Any) -> None:
    """Puts the embedded environment in the place of every container.

    Raises:
      AssertionError: there is no container, or something was staged for it beside the graph: the image has it all.
    """
    assert graph.components.environments
    for environment in graph.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn, environment.urn
        assert not environment.dependencies, environment.dependencies
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""


def main(path: str, load_only: bool) -> None:
    """Loads and runs; prints how many functions were loaded, and where the package was found."""
    graph = read_graph(path)
    functions = pickled_functions(graph)
    for _, pickled in functions:
        pickler.loads(pickled)
    ours = {n: m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] in ("beam_prep", "pipelines")}
    print(len(functions), ours["beam_prep"], flush=True)
    root = str(Path(ours["beam_prep"]).parents[1])
    assert all(file is None or file.startswith(root) for file in ours.values()), ours
    if load_only:
        return
    embed(graph)
    options = PipelineOptions([])
    FileSystems.set_options(options)
    state = FnApiRunner().run_via_runner_api(graph, options).wait_until_finish()
    assert state == "DONE", state


if __name__ == "__main__":
    main(sys.argv[1], "--load-only" in sys.argv)
