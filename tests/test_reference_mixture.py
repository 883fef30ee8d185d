"""The reference mixture on real rows, through `examples/reference_mixture.yaml`: asked and realised shares.

The rows lie beside the repository; where they are absent, the test is skipped. Datasets of which there is no file take
no part, and the few rows of some are seen thousands of times: the shares are what is tested.
"""

from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from results import manifest_of

from beam_prep.config import Config, load_config
from beam_prep.launch import RunOptions, prepare, run

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "reference_mixture.yaml"
TOTAL = 10e6
CORPORA = {"wikipedia": "wikipedia.jsonl.zst", "fineweb-edu-long": "en-classic-books.jsonl.zst"}


def files_of(name: str, data: Path) -> list[str]:
    """Rows of a dataset, or others in its form."""
    if name in CORPORA:
        found = [data / "corpora" / CORPORA[name]]
    else:
        found = sorted([*(data / "raw").glob(f"{name}.jsonl*"), *(data / "raw" / "proxy").glob(f"{name}.*jsonl*")])
    return [str(path) for path in found if path.exists()]


@pytest.fixture(scope="module")
def config(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The example with the files that are there, and a budget for them."""
    whole = load_config(str(EXAMPLE))
    found = [(dataset, files_of(dataset.name, real_data)) for dataset in whole.datasets]
    datasets = [dataset.model_copy(update={"input": files}) for dataset, files in found if files]
    out = tmp_path_factory.mktemp("reference") / "out"
    return whole.model_copy(
        update={"datasets": datasets, "total_tokens": TOTAL, "max_epochs": 10_000.0, "output": str(out)}
    )


def largest_documents(out: Path) -> dict[str, int]:
    """Tokens of the longest document of each source."""
    sizes: dict[tuple, int] = defaultdict(int)
    for name, output in manifest_of(out)["outputs"].items():
        for shard in output["shards"]:
            columns = ["source", "file", "offset", "copy", "length"]
            for row in pq.read_table(out / name / shard["documents"], columns=columns).to_pylist():
                *where, length = row.values()
                sizes[(*where, name)] += length
    largest: dict[str, int] = {}
    for (source, *_), size in sizes.items():
        largest[source] = max(size, largest.get(source, 0))
    return largest


def test_every_dataset_of_the_example_is_a_share_of_the_published_size() -> None:
    config = load_config(str(EXAMPLE))
    assert sum(dataset.weight for dataset in config.datasets) == pytest.approx(1700, rel=0.05)  # millions of tokens
    assert all(dataset.template == dataset.name for dataset in config.datasets)


def test_shares_are_those_that_were_asked(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run(prepare(config, RunOptions()))
    out = Path(config.output)
    manifest = manifest_of(out)
    assert len(manifest["outputs"]["train"]["sources"]) == len(config.datasets) >= 24
    largest = largest_documents(out)
    table, wrong = [], []
    for name, fraction in config.splits.items():
        output = manifest["outputs"][name]
        budget = Fraction(TOTAL) * Fraction(fraction)
        weights = {d.name: Fraction(d.weight) for d in config.datasets if d.name in output["sources"]}
        table.append(
            f"\n{name:25} {'asked':>9} {'realised':>9} {'tokens':>10} {'off by':>9} {'documents':>9} {'epochs':>9}"
        )
        for source, weight in weights.items():
            share = weight / sum(weights.values())
            found = output["sources"][source]
            off = float(found["tokens"] - share * budget)
            table.append(
                f"{source:25} {float(share):9.4%} {found['share']:9.4%} {found['tokens']:10,} "
                f"{off / float(share * budget):9.3%} {off / largest[source]:9.2f} {found['epochs']:9.2f}"
            )
            assert found["asked_share"] == pytest.approx(float(share))
            if abs(off) > max(0.005 * float(share * budget), largest[source]):
                wrong.append(table[-1])
        whole = max(largest.values())  # the books
        assert abs(output["tokens"] - budget) <= 0.005 * budget + whole
    with capsys.disabled():
        print("\n".join(table))
    assert not wrong, "\n".join(table)
    for name, entry in manifest["ledger"].items():
        ends = sum(entry["rejected"].values()) + sum(entry["filtered"].values())
        ends += entry["duplicates"] + entry["sampled_out"] + entry["documents"]
        assert entry["records"] == ends, name
