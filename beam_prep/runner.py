"""The local runner: Beam's FnApiRunner, with one optimisation that the other engines have and it lacks.

FnApiRunner keeps in memory whatever crosses a Flatten, which here would be the text of the whole corpus. Dataflow
and Flink fuse through it. This runner does the same for the Flatten of the sources: before fusion, the steps from
the distributed units to that Flatten are folded into one stage, and unfolded again afterwards, so that one worker
reads, transforms, mixes and tokenizes a batch before it takes the next one. The graph itself is the same everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import threading
from collections.abc import Iterable
from typing import Any

import grpc
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_fn_api_pb2_grpc, beam_runner_api_pb2, endpoints_pb2
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner, translations, worker_handlers
from apache_beam.runners.worker import bundle_processor
from apache_beam.utils import thread_pool_executor
from google.protobuf import json_format, text_format

from beam_prep.fork_server import ForkServer

_FORKED = "beam-prep:worker:forked"
FOLD_FROM, FOLD_TO = "By source", "Flatten"
"""Names of the first and the last step that are folded."""
_FOLDED = "beam-prep-folded"


class LocalRunner(fn_runner.FnApiRunner):
    """FnApiRunner that fuses through the Flatten of the sources, and has worker processes of its own."""

    def __init__(self, server: ForkServer | None = None):
        """`server`: where worker processes come from; None to start each anew."""
        super().__init__()
        self._server = server

    def run_via_runner_api(self, pipeline_proto: Any, options: Any) -> Any:
        """Runs the pipeline; worker processes leave Ctrl-C to this one, and do not outlive it (see `worker`)."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn != python_urns.SUBPROCESS_SDK or os.name != "posix":
                continue
            if self._server is None:
                environment.payload = f"exec {shlex.quote(sys.executable)} -m beam_prep.worker".encode()
            else:
                environment.urn = _FORKED
                handler = functools.partial(_ForkedWorkerHandler, self._server)
                worker_handlers.WorkerHandler.register_environment(_FORKED, bytes)(handler)
        return super().run_via_runner_api(pipeline_proto, options)

    def create_stages(self, pipeline_proto: Any) -> Any:
        """The stages to run; see the module's text."""
        folded: list[Any] = []

        def sink_flattens(stages: Iterable[Any], context: Any) -> Any:
            return _sink_flattens(_fold(list(stages), folded), context)

        def greedily_fuse(stages: Iterable[Any], context: Any) -> Any:
            return _unfold(_greedily_fuse(list(stages), context), folded)

        # `create_stages` looks its phases up in the module; there is no other way to add one.
        _sink_flattens, _greedily_fuse = translations.sink_flattens, translations.greedily_fuse
        translations.sink_flattens, translations.greedily_fuse = sink_flattens, greedily_fuse
        try:
            return super().create_stages(pipeline_proto)
        finally:
            translations.sink_flattens, translations.greedily_fuse = _sink_flattens, _greedily_fuse


class _ForkedWorkerHandler(worker_handlers.SubprocessSdkWorkerHandler):
    """Like the one it comes from, but for where the process comes from."""

    def __init__(self, server: ForkServer, payload: bytes, state: Any, provision_info: Any, grpc_server: Any):
        super().__init__(payload, state, provision_info, grpc_server)
        self._server, self._job = server, provision_info.provision_info

    def start_worker(self) -> None:
        """Asks for a worker process, and for a thread that waits for its end."""
        self.worker_thread = threading.Thread(target=self._run, name="run_worker")
        self.worker_thread.start()

    def _run(self) -> None:
        logs = grpc.server(thread_pool_executor.shared_unbounded_instance())
        port = logs.add_insecure_port("[::]:0")
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(local_job_service.BeamFnLoggingServicer(), logs)
        logs.start()
        logs_at = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{port}")
        environment = {
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
            "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(logs_at),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self._job.pipeline_options),
        }
        status = self._server.run_worker(self.worker_id, environment)
        logs.stop(0)
        if status:  # in the words of the class it comes from
            error = RuntimeError(f"Worker subprocess exited with return code {status}")
            self._give_up(error)
            raise error

    def _give_up(self, error: Exception) -> None:
        """Fails what the worker was asked to do and will be asked to; Beam would wait for its answers for ever."""
        push = self.control_conn.push

        def refuse(request: Any) -> Any:
            future = push(request)
            if future is not None:
                future.abort(error)
            return future

        self.control_conn.push = refuse
        self.control_conn.abort(error)
        with contextlib.suppress(Exception):  # it may say itself that the worker is gone
            self.data_conn.close()


def _fold(stages: list[Any], folded: list[Any]) -> list[Any]:
    """Replaces the region's stages by one whose only transform stands for all; `folded` receives the originals."""
    flatten = next((s for s in stages if s.transforms[0].unique_name == FOLD_TO), None)
    if flatten is None or flatten.transforms[0].spec.urn != common_urns.primitives.FLATTEN.urn:
        return stages
    producers = {pcoll: s for s in stages for t in s.transforms for pcoll in t.outputs.values()}
    region = [flatten]
    pending = list(flatten.transforms[0].inputs.values())
    while pending:
        stage = producers[pending.pop()]
        if any(stage is known for known in region):
            continue
        region.append(stage)
        if not stage.transforms[0].unique_name.startswith(FOLD_FROM):
            pending += stage.transforms[0].inputs.values()
    # The worker has no Flatten of several inputs in a fused stage, but an identity step takes any number.
    flatten.transforms[0].spec.urn = bundle_processor.IDENTITY_DOFN_URN
    outside = [s for s in stages if not any(s is r for r in region)]
    made = {pcoll for s in region for t in s.transforms for pcoll in t.outputs.values()}
    used = {pcoll for s in region for t in s.transforms for pcoll in t.inputs.values()}
    wanted = {pcoll for s in outside for t in s.transforms for pcoll in t.inputs.values()}
    stand_in = beam_runner_api_pb2.PTransform(
        unique_name=_FOLDED,
        inputs={str(n): pcoll for n, pcoll in enumerate(sorted(used - made))},
        outputs={str(n): pcoll for n, pcoll in enumerate(sorted(made & wanted))},
        spec=beam_runner_api_pb2.FunctionSpec(urn=bundle_processor.IDENTITY_DOFN_URN),
        environment_id=next(s.transforms[0].environment_id for s in region if s.transforms[0].environment_id),
    )
    side = frozenset().union(*[s.downstream_side_inputs or () for s in region])
    folded += [t for s in region for t in s.transforms]
    return [*outside, translations.Stage(_FOLDED, [stand_in], downstream_side_inputs=side, must_follow=frozenset())]


def _unfold(stages: Iterable[Any], folded: list[Any]) -> list[Any]:
    result = list(stages)
    for stage in result:
        for transform in list(stage.transforms):
            if transform.unique_name == _FOLDED:
                stage.transforms.remove(transform)
                stage.transforms.extend(folded)
    return result
