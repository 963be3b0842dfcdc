"""The command `check`: validates a configuration without root, without the kernel and without the subnet file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from flanneld_masq.cli.output import print_json
from flanneld_masq.cli.settings import load_settings
from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import config, config_files
from flanneld_masq.model import AUTO, Settings
from flanneld_masq.ruleset.backend_choice import check_names

BUILT_IN = frozenset((AUTO, "nft", "iptables-nft", "iptables-legacy"))


def check(options: argparse.Namespace) -> int:
    """Say if the configuration is valid: 0, or 2 with the file and the key that are wrong."""
    files: tuple[Path, ...] = ()
    wrong: ConfigError | None = None
    try:
        files = _files(options)
        _validate(options)
    except ConfigError as error:
        if not options.json:
            raise
        wrong = error
    if options.json:
        print_json({"valid": wrong is None, "files": list(map(str, files)), "error": wrong and _as_data(wrong)})
    else:
        print(
            "\n".join(f"{file}: valid" for file in files) or f"{options.config}: missing, so every key has its default"
        )
    return wrong.exit_code if wrong else 0


def _files(options: argparse.Namespace) -> tuple[Path, ...]:
    """Return the files that are validated, as far as they are there."""
    if options.file is not None:
        return (Path(options.file),)
    main = Path(options.config)
    return (*((main,) if os.path.lexists(main) else ()), *config_files.drop_ins(main))


def _validate(options: argparse.Namespace) -> None:
    """Raise ConfigError if a daemon would not start with this configuration."""
    if options.file is None:
        settings = load_settings(options)
    else:
        text = config_files.read(Path(options.file), any_owner=True)
        overrides = (options.backend, options.subnet_file or ())
        settings = config.with_overrides(config.parse(text, options.file), *overrides)
    if not _names(settings) <= BUILT_IN:  # only then plugins are loaded, for their code is foreign
        from flanneld_masq import plugin_loader

        plugins = plugin_loader.load()
        check_names(settings, plugins.backends, plugins.failures)


def _names(settings: Settings) -> set[str]:
    return {settings.backend, settings.forward.backend}


def _as_data(error: ConfigError) -> dict[str, str]:
    return {"file": error.source, "key": error.key, "reason": error.reason}
