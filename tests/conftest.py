"""What the tests share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from beam_prep.tokenizer import TokenizerSpec, resolve

# A shared machine is no clock, and every test that asks for a folder overwrites what it wrote there.
settings.register_profile("beam-prep", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("beam-prep")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the repository; without it the test is skipped."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data lies beside the repository, in ../shared/data, and is not there")
    return folder


@pytest.fixture(scope="session")
def qwen3() -> TokenizerSpec:
    """The bundled tokenizer."""
    return resolve("qwen3")
