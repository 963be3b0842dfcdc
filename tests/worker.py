"""`python3 -m tests.worker COMMAND...`: run a command in private namespaces, or outside where the kernel gives none."""

from __future__ import annotations

import contextlib
import os
import sys

from flanneld_masq.selftest import netns

if __name__ == "__main__":
    with contextlib.suppress(netns.NamespaceError):  # each test that needs them says so
        netns.enter()
    os.execvp(sys.argv[1], sys.argv[1:])
