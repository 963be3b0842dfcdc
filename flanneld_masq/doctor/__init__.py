"""Finds what breaks the traffic of pods on a node, for the command `doctor`. The daemon imports none of it."""
