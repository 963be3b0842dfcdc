"""Imports all of the program, once, for a process that forks: the starts of it (`kernel/started.py`), or unit tests."""

import importlib
import pkgutil

from flanneld_masq import footprint

footprint.load_asyncio()
for package in map(importlib.import_module, ("flanneld_masq", "flanneld_masq_nft", "flanneld_masq_iptables")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
