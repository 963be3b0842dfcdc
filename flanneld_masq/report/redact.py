"""Removes secrets from a text before it leaves the node: values of keys and options that are named like secrets,
passwords in URLs, and blocks of PEM. Addresses, names and rules stay. Pure.

The keys are those of TOML, JSON, YAML, shell and command lines. A value keeps its quotes, so that the form stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

REDACTED = "(redacted)"
# PSK is the key of flannel's backends ipsec and wireguard.
_NAME = re.compile(
    r"token|passw|passphrase|secret|credential|psk|api[-_]?key|access[-_]?key|private[-_]?key|auth|cookie",
    re.IGNORECASE,
)
_KEY = re.compile(r"""(?<![\w.-])(?P<key>[\w.-]+)(?:["']?[ \t]*[:=][ \t]*|(?P<blank>[ \t]+))""")
_VALUE = re.compile(
    r'"{3}[\s\S]*?(?:"{3}|\Z)'
    r"|'{3}[\s\S]*?(?:'{3}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\[[^\]]*(?:\]|\Z)"
    r"|(?:[\d.]+|true|false|null)(?=[\s,}\]])"
    r"|[^\s{][^\n]*"
)
_HARMLESS = ("true", "false", "null")
_BEARER = re.compile(r"(?P<key>\bbearer )[\w.~+/=-]+", re.IGNORECASE)
_USER = re.compile(r"://[^/\s\"'@]+@")
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]*-----[\s\S]*?(?:-----END [A-Z0-9 ]*-----|\Z)")


def secrets_removed(text: str) -> str:
    """Return the text with the values of secrets replaced by REDACTED."""
    text = _PEM.sub(REDACTED, text)
    text = _USER.sub(f"://{REDACTED}@", text)
    return _BEARER.sub(rf"\g<key>{REDACTED}", "".join(_parts(text)))


def _parts(text: str) -> Iterator[str]:
    done = 0
    for key in _KEY.finditer(text):
        if key.start() < done or not _is_secret(key):
            continue
        value = _VALUE.match(text, key.end())
        if value is not None and value[0] not in _HARMLESS:
            yield text[done : key.end()]
            yield _redacted(value[0])
            done = value.end()
    yield text[done:]


def _is_secret(key: re.Match[str]) -> bool:
    """Return True if the name of a key suggests a secret. A key that a blank separates from its value counts only if it
    is an option of a command line (`--token VALUE`)."""
    return _NAME.search(key["key"]) is not None and (not key["blank"] or key["key"].startswith("--"))


def _redacted(value: str) -> str:
    """Return what stands for a value of the same kind; for a number, text."""
    if value.startswith("["):
        return f'["{REDACTED}"]'
    quote = value[0] if value[0] in "\"'" else '"' * value.replace(".", "").isdecimal()
    return f"{quote}{REDACTED}{quote}"
