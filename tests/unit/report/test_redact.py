"""Secrets leave no trace; what is needed to find a fault stays."""

from __future__ import annotations

import json

import pytest

from flanneld_masq.report.redact import REDACTED, secrets_removed


@pytest.mark.parametrize(
    "text",
    [
        'token = "hunter2"',
        "token = 'hunter2'",
        'password="hunter2"',
        "DB_PASSWORD=hunter2,hunter2",
        "api-key: hunter2 hunter2",
        '{"Backend": {"Type": "ipsec", "PSK": "hunter2"}}',
        '"client_secret" :\t"a\\"hunter2"',
        'tokens = ["hunter2",\n "hunter2"]',
        'secret = """\nhunter2\n"""',
        "secret = '''\nhunter2",
        'secret = "hunter2',
        "https://admin:hunter2@example.org/x",
        "Authorization: Bearer hunter2",
        "curl -H 'x: bearer hunter2'",
        "kubelet --bootstrap-token hunter2 --v=2",
        "--token=hunter2",
        "a=1 password=hunter2",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2",
    ],
)
def test_a_secret_is_removed(text: str) -> None:
    found = secrets_removed(text)
    assert "hunter2" not in found
    assert REDACTED in found


@pytest.mark.parametrize(
    "text",
    [
        'backend = "auto"\n[masquerade]\nnon_masquerade_cidrs = ["10.0.0.0/8"]\n',
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_IPMASQ=true\n",
        '{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan", "VNI": 1}}',
        "2: eth0: <BROADCAST,UP> mtu 1500 qdisc noqueue state UP group default",
        "default via 192.0.2.1 dev eth0 proto dhcp metric 100",
        "inet6 fd00:10:244:1::1/64 scope global",
        "POSTROUTING jump removed by iptables-restore (pid 8426)",
        "the token of the lease",
        '"auth": true, "x": 1',
    ],
)
def test_all_else_stays(text: str) -> None:
    assert secrets_removed(text) == text


def test_json_and_toml_keep_their_form() -> None:
    text = '{"a": {"password": "x", "retries": 3}, "token": 5, "keys": {"secret": ["a", "b"], "b": true}}'
    found = json.loads(secrets_removed(text))
    assert found["a"] == {"password": REDACTED, "retries": 3}
    assert found["token"] == REDACTED
    assert found["keys"] == {"secret": [REDACTED], "b": True}


def test_the_second_time_changes_nothing() -> None:
    once = secrets_removed('password = "x"\ntoken: y\nhttps://a:b@c/')
    assert secrets_removed(once) == once
