"""Doing: state becomes running stages, and what happens here becomes events."""
