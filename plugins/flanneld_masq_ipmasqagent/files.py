"""Reads the configuration files of ip-masq-agent that the settings name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import path_patterns
from flanneld_masq.inputs.text import read_regular, why
from flanneld_masq.model import Network
from flanneld_masq_ipmasqagent import agent_config
from flanneld_masq_ipmasqagent.agent_config import AgentConfig

MAX_BYTES = 32 * 1024  # more than a thousand networks; PyYAML takes quadratic time for some texts, a second for 64 KiB


def networks(entries: tuple[str, ...]) -> tuple[Network, ...]:
    """Return the destinations that the files of these paths and patterns except, merged. Raises ConfigError for the
    first file that cannot be used; one that is missing counts as none, as the agent takes it."""
    return agent_config.networks(tuple(config for entry in entries for config in _configs(entry)))


def _configs(entry: str) -> Iterator[AgentConfig]:
    if not path_patterns.is_pattern(entry):
        yield from _config(entry)
        return
    found = path_patterns.expand(entry)
    if found.trouble:
        raise ConfigError(entry, "", found.trouble)
    for file in found.files:
        yield from _config(file)


def _config(file: str) -> Iterator[AgentConfig]:
    try:
        data, _ = read_regular(Path(file), MAX_BYTES)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigError(file, "", f"cannot be read: {why(error, file)}") from error
    yield agent_config.parse(data, file)
