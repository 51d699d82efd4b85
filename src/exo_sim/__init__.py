"""A whole cluster of agreement cores in virtual time: disks, network, clocks and their faults, all from one seed.

It is a tool of this repository and no part of the wheel: `python -m exo_sim --help`.
"""
