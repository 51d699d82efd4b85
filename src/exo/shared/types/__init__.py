"""Frozen values: ids, devices, models, instances, events, commands, state."""
