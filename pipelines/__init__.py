"""The graphs. They wire the steps of `beam_prep.transforms` together and hold no logic."""
