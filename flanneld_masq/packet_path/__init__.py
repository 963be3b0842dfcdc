"""Models the path of a packet through the node: every base chain of every program, NAT, marks and routing.

Everything but `collect` is pure over a `Snapshot` (`snapshot`), which can be saved and loaded. The daemon loads none of
it. Start reading at `evaluate.py` for one packet, at `flow_cases.py` for the packets that pods need, and
at `flows.py` for what becomes of them.

An unknown match, a limit, the time of day and the like cannot be evaluated; their answer is "may". The model then
follows both ways, and a result is certain only if all ways have the same end.
"""
