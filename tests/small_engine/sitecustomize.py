"""On the path of a run and of its workers, makes units, runs and shards so small that a little data gives several.

An engine's workers are processes of their own, which a test cannot reach in any other way.
"""

from beam_prep import balance, compression, sources, tokenization

balance.MIN_BUCKET_TOKENS = balance.MAX_BUCKET_TOKENS = 60_000
compression.CHUNK_BYTES = 64_000
sources.MIN_UNIT_BYTES = 200_000
tokenization.RUN_BYTES = tokenization.ENGINE_RUN_BYTES = 100_000
