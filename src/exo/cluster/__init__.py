"""Agreeing: one order of decisions, the same on every node."""
