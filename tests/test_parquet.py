"""Parquet input: every row once, its number as offset, whatever the row groups; damage is named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_prep import sources
from beam_prep.errors import BeamPrepError
from beam_prep.parquet import read_row_groups, row_group_bytes
from beam_prep.reading import read_unit


def write(path, rows, group):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


def rows_of(units):
    found = []
    for unit in units:
        for batch in read_unit(unit):
            found += [
                (batch.file, int(o), json.loads(line)) for o, line in zip(batch.offsets, batch.lines, strict=True)
            ]
    return found


ROWS = [{"text": f"row {n} \u2028 é" * (n % 7 + 1), "n": n, "list": [{"a": None}, {"a": n}]} for n in range(1000)]


@pytest.mark.parametrize("group", [1, 7, 100, 5000])
@pytest.mark.parametrize("unit_bytes", [1, 3000, 1 << 30])
def test_every_row_once_with_its_number(tmp_path, group, unit_bytes):
    path = write(tmp_path / "a.parquet", ROWS, group)
    files = sources.match_source("s", [path])
    assert rows_of(sources.split_source(0, files, unit_bytes)) == [(0, n, row) for n, row in enumerate(ROWS)]


def test_values_that_json_has_no_form_for(tmp_path):
    import datetime
    import decimal

    day = datetime.datetime(2024, 1, 2, 3, 4, 5)
    row = {"b": b"text", "raw": b"\xff\x00", "day": day, "price": decimal.Decimal("1.50"), "none": None}
    lines, _ = next(read_row_groups(write(tmp_path / "a.parquet", [row], 1), 0, -1))
    assert json.loads(lines[0]) == {
        "b": "text",
        "raw": "/wA=",
        "day": "2024-01-02T03:04:05",
        "price": "1.50",
        "none": None,
    }


def test_empty_file_has_no_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert rows_of(sources.split_source(0, sources.match_source("s", [str(path)]))) == []


@pytest.mark.parametrize("damage", ["truncated", "no footer", "not parquet", "body"])
def test_damage_is_an_error_that_names_the_file(tmp_path, damage):
    path = write(tmp_path / "a.parquet", ROWS, 100)
    data = bytearray(Path(path).read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "no footer":
        data = data[:-4] + b"XXXX"
    elif damage == "not parquet":
        data = bytearray(b'{"text": "json"}\n')
    else:
        data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)
    Path(path).write_bytes(data)
    with pytest.raises(BeamPrepError, match=r"a\.parquet"):
        for _ in read_row_groups(path, 0, -1):
            pass
    if damage != "body":
        with pytest.raises(BeamPrepError, match=r"a\.parquet"):
            row_group_bytes(path)
