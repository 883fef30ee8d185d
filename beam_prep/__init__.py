"""Raw datasets in, packed and tokenized training data out: one Apache Beam graph."""

__version__ = "0.1.0"
