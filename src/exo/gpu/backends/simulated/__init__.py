"""Machines that are not there, played from files: for trying and testing mixed clusters on a laptop."""
