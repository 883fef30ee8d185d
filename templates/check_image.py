"""Carries out the Dockerfile's steps in a clean virtual environment, and proves that what they leave works.

`python -m templates.check_image` (`make image-check`) takes a minute or two: it installs every package anew. The base
image is not there: its Python is a new virtual environment's, and Dataflow's launcher is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from beam_prep.tokenizer import BUNDLED
from templates.dockerfile_steps import Done, StepError, carry_out, read_steps

ROOT = Path(__file__).resolve().parents[1]
_PASSED_ON = re.compile(r"PIP_.*|.*_PROXY|.*_proxy|SSL_CERT.*|.*CA_BUNDLE|LANG|LC_ALL|HOME|TMPDIR")
"""What pip needs to reach its registry from here."""
_TINY = """\
context_length: 64
output: {folder}/out-{{date}}
datasets:
- {{name: tiny, text_field: text, input: {folder}/tiny.jsonl}}
"""


def python_of(arguments: Mapping[str, str]) -> str:
    """The interpreter of the version that the base image has, or this one."""
    wanted = f"python{arguments['PYTHON']}"
    found = shutil.which(wanted)
    if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
        return found
    print(f"{wanted} is not installed: taking {sys.executable}")
    return sys.executable


def check(done: Done, environment: dict[str, str], root: Path, tokenizer: str) -> None:
    """What the image must be able to do.

    Raises:
      StepError: it cannot.
    """

    def call(*words: str) -> str:
        ran = subprocess.run(
            words, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            raise StepError(
                f"{' '.join(words)}: exit status {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
            )
        return ran.stdout

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise StepError(f"not so: {what}")
        print(f"ok: {what}")

    # Not a step of the image: its base brings packages of its own, which nothing here imports.
    require("No broken requirements" in call("python", "-m", "pip", "check"), "no package conflicts with another")
    places = call("python", "-c", "import beam_prep, pipelines.prepare as p; print(beam_prep.__file__, p.__file__)")
    require(all("site-packages" in place for place in places.split()), "beam_prep and pipelines are installed")
    version = call("python", "-c", "import apache_beam; print(apache_beam.__version__)").strip()
    require(version == done.versions["BEAM"], f"the Beam that is installed is the base image's, {version}")
    require("wikipedia" in call("beam-prep", "datasets"), "beam-prep datasets")
    call("python", "-m", "beam_prep.bake_tokenizer", "qwen3", str(root / "bundled"))
    bundled, baked = root / "bundled", Path(done.environment["TOKENIZER_FOLDER"])
    require(_sha256(bundled / "tokenizer.json") == BUNDLED["qwen3"], "the bundled tokenizer has its sha256")
    require(
        _sha256(baked / "tokenizer.json") == BUNDLED.get(tokenizer, _sha256(baked / "tokenizer.json")),
        f"the tokenizer that was asked for ({tokenizer}) is in {baked.name}/",
    )
    entry = done.environment["FLEX_TEMPLATE_PYTHON_PY_FILE"]
    text = call("python", entry, "--help")
    metadata = json.loads((ROOT / "templates/metadata.json").read_text("utf-8"))
    names = [parameter["name"] for parameter in metadata["parameters"]]
    require(all(f"--{name}" in text for name in names), f"the entry point knows all {len(names)} parameters")
    rows = [json.dumps({"text": f"words of document {n} " * 9}) for n in range(50)]
    (root / "tiny.jsonl").write_text("\n".join(rows) + "\n")
    (root / "tiny.yaml").write_text(_TINY.format(folder=root))
    call("python", entry, f"--config={root}/tiny.yaml", f"--tokenizer={baked}", "--seed=5", "--overwrite=false")
    (out,) = root.glob("out-20*")
    require(
        call("beam-prep", "verify", str(out)).startswith("ok: "), "the entry point runs a job, and verify finds it good"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m templates.check_image", description=__doc__)
    parser.add_argument("--tokenizer", default="qwen3", help="Build argument TOKENIZER; a Hub id needs the network.")
    tokenizer = parser.parse_args(argv).tokenizer
    begin = time.monotonic()
    steps = read_steps(ROOT / "Dockerfile")
    arguments = dict(step.value.split("=", 1) for step in steps if step.name == "ARG")
    with tempfile.TemporaryDirectory(prefix="beam-prep-image-") as folder:
        root = Path(folder, "root")
        # The pip that an interpreter carries may be years old and take three times as long.
        subprocess.run([python_of(arguments), "-m", "venv", "--upgrade-deps", f"{folder}/python"], check=True)
        outside = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        # Compiling what is imported only costs a part of compiling all that is installed.
        outside |= {"PATH": f"{folder}/python/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1", "PIP_NO_COMPILE": "1"}
        root.mkdir()
        try:
            done = carry_out(steps, ROOT, root, {"TOKENIZER": tokenizer}, outside)
            for step in done.left_out:
                print(f"not here: {step}")
            check(done, {**outside, **done.environment, "HF_HUB_OFFLINE": "1"}, root, tokenizer)
        except StepError as error:
            print(f"error: Dockerfile: {error}", file=sys.stderr)
            return 1
    print(f"the image's steps work; {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
