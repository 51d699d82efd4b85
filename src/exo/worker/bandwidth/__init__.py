"""Measuring how fast data gets from node to node and from device to device, while nobody needs the ways."""
