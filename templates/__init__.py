"""Dataflow: the flex template, a launch of it, its schedule, and the check of the image."""
