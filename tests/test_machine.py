"""What a local run takes of the machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_prep.errors import ConfigError
from beam_prep.machine import DEFAULT_BYTES, LEADER_BYTES, PROCESS_BYTES, allot, cores, is_for_one_process, total_memory

GB = 10**9


def test_the_usual_is_one_process_for_two_cores() -> None:
    assert allot(None, None, 100 * GB, 2, 24 * GB).workers == 1
    assert allot(None, None, 100 * GB, 16, 64 * GB).workers == 8
    assert allot(None, None, int(1.5 * GB), 16, 64 * GB).workers == 3  # a process more costs more than it brings
    assert allot(None, None, 10, 16, 64 * GB).workers == 1
    assert allot(None, None, 100 * GB, 64, 8 * GB).workers == 3  # half of the memory


def test_memory_that_is_given_is_used() -> None:
    assert allot(None, 3 * GB, 100 * GB, 2, 24 * GB).workers == 2
    assert allot(None, 2 * GB, 100 * GB, 2, 24 * GB).workers == 1
    assert allot(None, 30 * GB, 100 * GB, 16, 64 * GB).workers == 16
    assert allot(None, 30 * GB, 2 * GB, 16, 64 * GB).workers == 4
    assert is_for_one_process(1, None) and is_for_one_process(1, "9GB") and not is_for_one_process(2, None)
    assert is_for_one_process(None, "9GB") == (cores() == 1)


def test_what_is_asked_for_is_given() -> None:
    assert allot(5, None, 10, 2, GB).workers == 5
    own = allot(3, 4 * GB, 10, 2, GB)
    assert (own.workers, own.encoders, own.memory) == (3, 1, 4 * GB)


def test_this_machine() -> None:
    assert cores() >= 1
    assert (total_memory() or GB) > 10**8
    assert allot(None, None, 0).workers == 1


@given(
    workers=st.none() | st.integers(1, 64),
    memory=st.none() | st.integers(1, 500 * GB),
    size=st.integers(0, 10**15),
    cores=st.integers(1, 256),
    there=st.integers(1, 10**13),
)
def test_it_fits_or_is_refused(workers: int | None, memory: int | None, size: int, cores: int, there: int) -> None:
    try:
        own = allot(workers, memory, size, cores, there)
    except ConfigError as error:
        assert memory is not None and "--memory" in error.message
        wanted = PROCESS_BYTES if not workers or workers == 1 else LEADER_BYTES + workers * PROCESS_BYTES
        assert memory < wanted
        return
    assert own.workers >= 1 and 1 <= own.encoders <= 4
    assert workers in (None, own.workers)
    if memory is None:
        assert own.memory == own.workers * DEFAULT_BYTES and own.run_bytes is None
    else:
        leader = LEADER_BYTES if own.workers > 1 else 0
        assert own.memory == memory >= leader + own.workers * PROCESS_BYTES
        assert own.run_bytes is not None and own.run_bytes >= 1 << 20


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(ConfigError, match="900 MB at the least"):
        allot(None, 200_000_000, 0)
    with pytest.raises(ConfigError, match="give --workers 1 or more memory"):
        allot(3, int(1.3 * GB), 0)
