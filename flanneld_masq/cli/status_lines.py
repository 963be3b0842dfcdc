"""The lines of `flanneld-masq status`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from flanneld_masq.cli.output import protection_text
from flanneld_masq.controller.status import FamilyStatus, GroupStatus, LastWrite, State, Status
from flanneld_masq.model import Family, Group, Lease
from flanneld_masq.reconcile.wording import describe


def status_lines(status: Status, *, commands: bool = False) -> Iterator[str]:
    """Yield the lines of `flanneld-masq status`. `commands` adds the command lines of programs, which are for root."""
    yield f"flanneld-masq: {status.state}" + (f", pid {status.pid}" if status.pid else "")
    for trouble in status.troubles:
        yield f"  trouble: {trouble}"
    for failure in status.plugin_failures:
        yield f"  {failure}"
    if status.since.daemon is not None:
        yield f"  since: {_time_text(status.since.daemon)}"
    for lease in status.leases:
        yield f"  lease: {lease.path}: {', '.join(_subnets(lease))}"
    for name, family in status.families.items():
        named = status.names(name) or not status.leases
        head, *rest = _family_lines(name, family, named=named, commands=commands)
        yield head
        since = status.since.families.get(name)
        if named and since is not None and since != status.since.daemon:
            yield f"  since: {_time_text(since)}"
        yield from rest


def _subnets(lease: Lease) -> Iterator[str]:
    return (f"{family} {part.subnet}" for family in Family if (part := lease.of(family)) is not None)


def _family_lines(name: Family, family: FamilyStatus, *, named: bool, commands: bool) -> Iterator[str]:
    """Yield the lines of one family. `named` is False if there are subnet files and none names the family."""
    states = [str(family.state)] if named else ["not in the subnet file"]
    if not named and family.state in (State.DEGRADED, State.CONTENDED):
        states.append(str(family.state))
    yield f"{name}: {', '.join(filter(None, (*states, family.last_error)))}"
    for group, choice in family.groups.items():
        yield from (f"  {_group_line(group, carrier)}" for carrier in choice.carriers)
    for message in filter(None, (*family.flannel.effects, family.flannel.takeover_stopped)):
        yield f"  flannel: {message}"
    if family.kube_proxy_mark is not None:
        yield f"  kube-proxy's mark: {family.kube_proxy_mark.mark or 'none'} ({family.kube_proxy_mark.why})"
    if family.protection is not None:
        yield f"  nft table: {protection_text(family.protection)}"
    if family.kernel:
        yield f"  kernel: {family.kernel}"
    if family.verified is not None and named:
        yield f"  verified: {_time_text(family.verified)}"
    if family.repairs or (named and family.repairs is not None):
        yield f"  repairs: {family.repairs}"
    if family.healed_flows:
        yield f"  healed flows: {family.healed_flows}"
    if family.last_repair is not None:
        yield f"  last repair: {_write_text(family.last_repair)}"
        for culprit in family.last_repair.culprits:
            command = f": {culprit.command}" if commands and culprit.command else ""
            yield f"    changed by {culprit.name} ({culprit.pid_text}) {culprit.unit}".rstrip() + command
    if family.last_write is not None:
        yield f"  last write: {_write_text(family.last_write)}"


def _time_text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _group_line(group: Group, choice: GroupStatus) -> str:
    rules = "" if choice.rules is None else f"{choice.rules} rules in "
    return f"{group}: {rules}{choice.backend} ({choice.why})"


def _write_text(write: LastWrite) -> str:
    changes = describe(write.changes)
    what = f"{write.time}, {write.backend} in {write.duration_us / 1000:.1f} ms ({write.reason})"
    return f"{what}: {changes}" if changes else what
