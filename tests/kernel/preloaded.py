"""Imports all that the program imports, once, for the process that forks each start of it (`started`)."""

from flanneld_masq import footprint, plugin_loader
from flanneld_masq.cli import main  # noqa: F401

footprint.load_asyncio()
from flanneld_masq.service import daemon  # noqa: E402, F401

plugin_loader.load()
