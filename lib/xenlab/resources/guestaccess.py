"""Reaching a guest over SSH: its host key pinned on the controller, its answer awaited.

The keys are made in dom0 before a guest's first boot (`xenlab.resources.guest`) and read from
there over a connection that is itself pinned, so a guest's key is known before it is ever met.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from itertools import zip_longest

from xenlab import hostkeys
from xenlab.command import Command
from xenlab.errors import ConnectionLost, NoConnection, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.guestroot import RECORDS
from xenlab.target import Target

ANSWER_SECONDS = 900


def host_keys(host: Host, names: tuple[str, ...], records: str = RECORDS) -> dict[str, str]:
    """The public host key of each guest, as dom0 recorded it; "" where none was made yet."""
    script = """
        records=$1; shift
        for name; do
            head -n 1 -- "$records/$name/host_key.pub" 2>/dev/null || echo
        done
    """
    found = host.run(Command.script(script, records, *names), check=False)
    lines = found.stdout.splitlines() if found.ok else []
    return {name: line for name, line in zip_longest(names, lines, fillvalue="") if name}


def fingerprint(key_line: str) -> str:
    """Type and SHA256 fingerprint of a public key line, as OpenSSH prints them."""
    words = key_line.split()
    if len(words) < 2:
        return ""
    try:
        digest = hashlib.sha256(base64.b64decode(words[1], validate=True)).digest()
    except ValueError:
        return ""
    return f"{words[0]} SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


@dataclass(frozen=True)
class HostKeyPinned(Resource):
    """A guest's key, the only one in the known_hosts file that the ssh_config names for it.

    ``target`` is the guest as the site reaches it. The host handed in is dom0, which has the key;
    known_hosts lies on this machine.
    """

    name: str
    target: Target
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """Whether this key is pinned, and no other."""
        line = host_keys(host, (self.name,), self.records)[self.name]
        if not line:
            return Difference(f"pin the host key of {self.name}, once it is made")
        file, name, port = hostkeys.place(self.target)
        keys = hostkeys.known_keys([file], name, port)
        now = ", ".join(hostkeys.describe(key) for key in keys)
        wanted = fingerprint(line)
        if now == wanted:
            return None
        return Difference(
            f"pin the host key of {self.name} in {file}",
            rows=({"guest": self.name, "now": now or "unknown", "wanted": wanted},),
        )

    def apply(self, host: Host, report: Report) -> None:
        """Pin the guest's key in the place of what was pinned for it before."""
        line = host_keys(host, (self.name,), self.records)[self.name]
        if not line:
            raise StepFailed(
                f"{self.name} has no host key yet", hint="run the steps before this one first"
            )
        file, name, port = hostkeys.place(self.target)
        hostkeys.pin(file, name, port, line, alone=True)


@dataclass(frozen=True)
class HostKeysDiffer(Resource):
    """A condition: each guest has a host key, and no two have the same (howto: „DomainU-Root“)."""

    names: tuple[str, ...]
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """Guests without a key, or that share one."""
        keys = host_keys(host, self.names, self.records)
        missing = [name for name, line in keys.items() if not line]
        if missing:
            return Difference(f"no host key yet: {', '.join(missing)}")
        owners: dict[str, list[str]] = {}
        for name, line in keys.items():
            owners.setdefault(" ".join(line.split()[:2]), []).append(name)
        shared = [names for names in owners.values() if len(names) > 1]
        if not shared:
            return None
        return Difference("these share a host key: " + "; ".join(", ".join(n) for n in shared))

    def apply(self, host: Host, report: Report) -> None:
        """Refused: a condition is not made true here."""
        raise StepFailed("this is a condition, and nothing makes it true here")


@dataclass(frozen=True)
class GuestAnswers(Resource):
    """A guest that answers over SSH with the kernel that was built for it.

    ``guest`` is the guest itself, whose transport knows when waiting for it is vain.
    """

    name: str
    guest: Host
    kernel_suffix: str = "-domU"
    seconds: float = ANSWER_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """Whether it answers now, and with which kernel."""
        try:
            release = self.guest.run("uname -r", patience=0).stdout.strip()
        except (NoConnection, ConnectionLost) as error:
            return Difference(f"wait until {self.name} answers: {error.message}")
        if release.endswith(self.kernel_suffix):
            return None
        return Difference(f"{self.name} runs kernel {release}, wanted is one …{self.kernel_suffix}")

    def apply(self, host: Host, report: Report) -> None:
        """Try to connect until the guest answers.

        Raises ConnectionRefused past the deadline, Unreachable at once where waiting is vain.
        """
        report(f"waiting for {self.name}")
        self.guest.transport.connect(host.stop, seconds=self.seconds)
