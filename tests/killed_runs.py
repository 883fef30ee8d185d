"""A program for `test_chaos`: runs the command in processes of their own, in which Beam and the tokenizer are loaded.

Reads a line for each run: the file for what it prints, then the arguments, all as JSON. Prints `started PID` and, when
it is over, `ended STATUS` (negative: the signal that ended it). Each run is a process group of its own.
"""

import json
import os
import sys

import apache_beam  # noqa: F401

from beam_prep import cli, launch, report_page, verification  # noqa: F401
from beam_prep.runner import LocalRunner  # noqa: F401
from beam_prep.tokenizer import encoder, resolve
from pipelines import prepare  # noqa: F401

encoder(resolve("qwen3"), "auto")


def run(log: str, arguments: list[str]) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 0
    try:
        cli.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


print("ready", flush=True)
for line in sys.stdin:
    log, *arguments = json.loads(line)
    process = os.fork()
    if not process:
        run(log, arguments)
    print("started", process, flush=True)
    _, status = os.waitpid(process, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)
