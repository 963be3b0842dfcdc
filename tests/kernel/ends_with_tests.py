"""Ends the process that forks each start of the program (`started`) with the process of the tests, however that ends.

Each child of it ends likewise with it. Without this the children would keep it alive: they have its pipe.
"""

from flanneld_masq.selftest import netns

netns.die_with_parent()
