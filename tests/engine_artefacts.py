"""What the tests and benchmarks of other engines need, fetched once by the package managers' own clients.

    python tests/engine_artefacts.py     fetches what can be had, and says what cannot

Prism and the program that starts workers in PROCESS mode are built by `go install`, Flink's job server comes by its
Maven coordinates. All of it is kept below `~/.cache/beam-prep/engines` (`XDG_CACHE_HOME`, `BEAM_PREP_ENGINES`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import apache_beam

VERSION = apache_beam.__version__
FLINK_VERSION = "1.20"
FLINK_JOB_SERVER = f"org.apache.beam:beam-runners-flink-{FLINK_VERSION}-job-server:{VERSION}"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FOLDER = Path(os.environ.get("BEAM_PREP_ENGINES") or _CACHE / "beam-prep" / "engines") / VERSION
PRISM = FOLDER / "prism"
_BOOT = FOLDER / "container"
FLINK_JAR = FOLDER / f"beam-runners-flink-{FLINK_VERSION}-job-server-{VERSION}.jar"
_GO_PACKAGES = {
    PRISM: f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{VERSION}",
    _BOOT: f"github.com/apache/beam/sdks/v2/python/container@v{VERSION}",
}


def boot_command(folder: Path) -> Path:
    """Writes the command that starts a worker in PROCESS mode, with this interpreter and its packages.

    Prism hands the worker's id over in quotes of its own, which are no part of it; the boot program leaves a file of
    options where it is started.
    """
    command = folder / "boot"
    path = f"{Path(sys.executable).parent}{os.pathsep}$PATH"
    command.write_text(
        f"#!/bin/bash\nexport PATH={path} RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1\n"
        f'exec {_BOOT} --semi_persist_dir={folder} "${{@//\\\'/}}"\n'
    )
    command.chmod(0o755)
    return command


def missing(*artefacts: Path) -> str | None:
    """Why a test that needs these must be skipped; None: all are there."""
    absent = [path.name for path in artefacts if not path.exists()]
    return f"no {', '.join(absent)} in {FOLDER}; `make engines` fetches what can be had" if absent else None


def _go_install(package: str) -> str | None:
    if shutil.which("go") is None:
        return "there is no Go"
    env = {**os.environ, "GOBIN": str(FOLDER)}
    done = subprocess.run(["go", "install", package], check=False, env=env, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _maven_copy(coordinates: str) -> str | None:
    if shutil.which("mvn") is None or shutil.which("java") is None:
        return "there is no Maven or no Java"
    copy = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={FOLDER}"]
    done = subprocess.run(copy, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = re.search(r"(Could not find artifact \S+|\S+ was not found)", done.stdout)
    return f"Maven: {found[0] if found else done.stdout.strip()[:300]}"


def main() -> None:
    """Fetches what is not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = {path: (_go_install, package) for path, package in _GO_PACKAGES.items()}
    for path, (fetch, name) in {**wanted, FLINK_JAR: (_maven_copy, FLINK_JOB_SERVER)}.items():
        problem = None if path.exists() else fetch(name)
        print(f"{path.name}: {path if problem is None else f'not to be had: {problem}'}", flush=True)


if __name__ == "__main__":
    main()
