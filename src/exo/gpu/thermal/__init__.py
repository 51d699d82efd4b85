"""Heat foreseen: a device is modelled while it works, and slowed down before it is too hot. Pure: no clock, no I/O."""
