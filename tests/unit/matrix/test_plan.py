"""The plan of the matrix: each cell has a scenario and a title, each machine a command line and a root."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...matrix.emulator import command
from ...matrix.guest.__main__ import asked
from ...matrix.guest.node import netfilter
from ...matrix.guest.scenarios import SCENARIOS
from ...matrix.image import Disk
from ...matrix.page import TITLES
from ...matrix.plan import MACHINES, Machine
from ...matrix.results import VERSIONS
from ...matrix.roots import MachineRecipe

DISK = Disk(Path("/kernel"), Path("/initrd"), Path("/image"))
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: str(machine.name))


@each_machine
def test_each_cell_has_a_scenario_and_a_title(machine: Machine) -> None:
    assert set(machine.cells) <= set(SCENARIOS)
    assert set(machine.cells) <= set(TITLES)
    assert len(set(machine.cells)) == len(machine.cells)


def test_each_scenario_is_a_cell_of_some_machine() -> None:
    assert set(SCENARIOS) - {VERSIONS} == {cell for machine in MACHINES for cell in machine.cells}


@each_machine
def test_the_machine_is_told_its_cells(machine: Machine) -> None:
    for one in machine.boots:
        argv = command(machine, one, one.cells[:2], DISK)
        append = argv[argv.index("-append") + 1]
        assert asked(append) == [VERSIONS, *one.cells[:2]]
        assert append.endswith(one.append)


@each_machine
def test_a_root_is_kept_by_all_that_goes_into_it(machine: Machine) -> None:
    recipe = MachineRecipe(machine)
    command_line = recipe.argv(Path("/target"))
    assert recipe.directory.name.startswith(f"matrix-{machine.name}-")
    assert machine.suite in command_line
    assert any(machine.kernel in word for word in command_line)
    assert ("--variant=extract" in command_line) == machine.unpacked


def test_names_are_unique() -> None:
    assert len({machine.name for machine in MACHINES}) == len(MACHINES)


def test_modules_of_netfilter_are_told_from_others() -> None:
    lines = (
        "nft_masq 16384 2 - Live 0x0",
        "ext4 999424 1 - Live 0x0",
        "ip_tables 32768 0 - Live 0x0",
        "virtio_net 86016 0 - Live 0x0",
        "nf_nat 57344 1 nft_masq, Live 0x0",
        "nfs 1 0 - Live 0x0",
    )
    assert netfilter(lines) == ["nft_masq", "ip_tables", "nf_nat"]
