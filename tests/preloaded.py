"""Imports the program and its backends, once, for a process that forks: starts of it, or the unit tests."""

import importlib
import pkgutil

from flanneld_masq import footprint

footprint.load_asyncio()
for package in map(importlib.import_module, ("flanneld_masq", "flanneld_masq_nft", "flanneld_masq_iptables")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
