"""Each console example of the documents is right, or an illustration. tests/system runs those of a node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flanneld_masq.cli import main

from ..examples import DOCUMENTS, MANUALS, PROGRAMS, ROOT, Example, Proof, examples, found_in, spans

EXAMPLES = [part for name in (*DOCUMENTS, *MANUALS) for example in examples(name) for part in example.parts()]
COMMANDS = [one for one in EXAMPLES if PROGRAMS.get(one.program) is Proof.COMMAND]
COMMANDS += [part for name in DOCUMENTS for span in spans(name) for part in span.parts()]
# What stands for a value in the documents, and such a value.
PLACEHOLDERS = {
    "POD": "10.244.1.5",
    "ADDRESS": "8.8.8.8",
    "OTHERPOD": "10.244.2.5",
    "FILE": "/tmp/file",
    "NAME": "nft",
    "STATE": "synced",
}
SUBNET = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"
# These need neither a node nor root, and print what the document says.
NODELESS = ("check", "explain", "render", "--version")


def shown(example: Example) -> str:
    return f"{example.document}: {example.command}"


def test_each_example_is_proved_or_an_illustration() -> None:
    without = [shown(example) for example in EXAMPLES if example.program not in PROGRAMS]
    assert without == [], "their programs are in no row of PROGRAMS in tests/examples.py"


def test_each_command_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    parser = main.parser()

    def complaint(example: Example) -> str:
        try:
            parser.parse_args([PLACEHOLDERS.get(word, word) for word in example.arguments])
        except SystemExit:
            return f"{shown(example)}: {capsys.readouterr().err}"
        return ""

    assert list(filter(None, map(complaint, dict.fromkeys(COMMANDS)))) == []


def test_each_target_of_make_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [one for one in EXAMPLES if PROGRAMS.get(one.program) is Proof.TARGET]
    assert [shown(one) for one in named if one.arguments[0] not in targets] == []


@pytest.mark.parametrize("example", [one for one in COMMANDS if one.output], ids=shown)
def test_each_shown_output_is_printed(example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.arguments[0] in NODELESS, "no test prints this; leave the output out, or describe it in a sentence"
    subnet = tmp_path / "subnet.env"
    subnet.write_text(SUBNET)
    assert main.main([*example.arguments, "--subnet-file", str(subnet)]) == 0
    assert capsys.readouterr().out == example.output


# ---- how examples are found


def test_a_block_with_prompts_has_outputs() -> None:
    text = "Text:\n\n    $ flanneld-masq check  # fine\n    ok\n      still\n    $ make demo\n\nMore.\n"
    assert list(found_in("a", text)) == [
        Example("a", "flanneld-masq check", "ok\n  still\n"),
        Example("a", "make demo"),
    ]


def test_a_block_without_prompts_has_only_commands() -> None:
    text = "    sudo systemctl start x\n\n    nft list |\n        while read -r y; do z; done\n"
    assert [one.command for one in found_in("a", text)] == [
        "systemctl start x",
        "nft list | while read -r y; do z; done",
    ]


def test_a_fence_says_what_it_is() -> None:
    text = "```console\n$ unknown\n```\n\n```toml\nflanneld-masq = 1\n```\n\n  ```sh\n  make demo\n  ```\n"
    assert [one.program for one in found_in("a", text)] == ["unknown", "make"]


def test_a_log_is_no_example() -> None:
    assert list(found_in("a", "    packet 1: lost\n    flanneld-masq\n")) == []


def test_commands_that_follow_each_other_are_parts() -> None:
    example = Example("a", "flanneld-masq check && sudo systemctl reload flanneld-masq")
    assert [part.program for part in example.parts()] == ["flanneld-masq", "systemctl"]
