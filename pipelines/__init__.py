"""The graphs. They wire `beam_prep.source_steps` and `beam_prep.output_steps` together and hold no logic."""
