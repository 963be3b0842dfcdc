"""The settings of a command."""

from __future__ import annotations

import argparse
from pathlib import Path

from flanneld_masq.inputs import config
from flanneld_masq.model import Settings


def load_settings(options: argparse.Namespace) -> Settings:
    """Read the configuration file and its drop-ins; options of the command line override it."""
    return config.with_overrides(config.load(Path(options.config)), options.backend, options.subnet_file or ())
