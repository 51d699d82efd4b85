"""Deciding: commands and failures become events. Pure decisions, one thin loop."""
