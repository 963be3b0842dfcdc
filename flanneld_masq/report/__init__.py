"""Makes what `report` sends: the page of a node, the flows as JSON, redacted text, and the archive.

The daemon loads none of it. Only `gather` starts programs, and only `archive` writes files.
"""
