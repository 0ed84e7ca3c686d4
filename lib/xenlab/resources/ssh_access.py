"""Reaching dom0 and guests over SSH: host keys, who may log in, sshd's settings."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest

from xenlab.command import CONTROLLER, MACHINE, SAID, Command
from xenlab.errors import CommandFailed, ConnectionLost, NoConnection, StepFailed
from xenlab.host import RECEIVE, Host, size_and_digest
from xenlab.resources.base import ANSWER_SECONDS, Check, Difference, Report, Resource
from xenlab.resources.files import File
from xenlab.resources.guest import RECORDS
from xenlab.site.schema import Dom0Ssh, GuestSsh, Parameters, Ssh
from xenlab.transport import hostkeys
from xenlab.transport.become import Become
from xenlab.transport.keys import public_keys
from xenlab.transport.ssh_config import Target, is_named, resolve

# The ways that a site names: to its machine, and to a guest.


def way_to(site: Parameters) -> Target:
    """How a site reaches its machine: the rescue system, or else the installed system."""
    ssh = site.ssh
    known = (ssh.config, ssh.port, ssh.user, ssh.identity, ssh.known_hosts)
    way = Target(ssh.host, *known, address=ssh.rescue_address, become=_becoming(ssh, None))
    own = site.dom0_ssh if site.knows("dom0_ssh") else Dom0Ssh()
    dom0 = _apart(replace(way, host=own.host or ssh.host, address=""), own)
    return way if dom0 == way else replace(way, other=dom0)


def way_to_guest(site: Parameters, name: str) -> Target:
    """How a site reaches a guest: as its ssh_config says, else at its address, through dom0.

    No name server is asked: a name such as “mail” may be another machine's there. Raises BadInput
    where the ssh_config cannot be read.
    """
    way = way_to(site)
    dom0 = way.other or way
    own = site.guest_ssh if site.knows("guest_ssh") else GuestSsh()
    named = _apart(replace(dom0, host=name, port=way.port), own)
    if is_named(named):
        return named
    # one that the site no longer names is nowhere; its key may still be pinned
    found = (d.address.partition("/")[0] for d in site.domains if d.name == name)
    address = next(found, "")
    known_hosts = str(hostkeys.own_file(site.site))
    behind = Target(name, "", 0, "", "", known_hosts, address, dom0, become=dom0.become)
    return _apart(behind, own)


def _apart(way: Target, own: GuestSsh) -> Target:
    return replace(
        way,
        port=own.port or way.port,
        user=own.user or way.user,
        identity=own.identity or way.identity,
        become=_becoming(own, way.become),
    )


def _becoming(own: Ssh | GuestSsh, usual: Become | None) -> Become | None:
    """How a login becomes root; what a site leaves out is as usual.

    The password is that of a program: what sudo asks for is nothing to su.
    """
    how = own.become or (usual.how if usual else "")
    if password := own.become_password:
        return Become(how, password.env, password.file) if how else None
    return usual if usual and how == usual.how else Become(how) if how else None


# Reaching dom0 over SSH after its first boot: its host keys, who may log in, the pinned key.

PUBLIC_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
AUTHORIZED = "/root/.ssh/authorized_keys"

_NOBODY = 45


@dataclass(frozen=True)
class SshHostKeys(Resource):
    """A system has a host key of its own, an ed25519 one; others that are there stay.

    `ssh-keygen -A` would also look for the primes of an RSA key, which takes a small machine
    long and which no client asks for where there is this one.
    """

    def probe(self, host: Host) -> Difference | None:
        """Whether the key, the one that is pinned, is missing."""
        script = '[ -s "$1" ] && [ -s "${1%.pub}" ]'
        if host.test(Command.script(script, PUBLIC_KEY)):
            return None
        return Difference("make an SSH host key")

    def commands(self) -> tuple[Command, ...]:
        """Make what is missing; a private key that is there stays what it is."""
        script = """
            key=${1%.pub}
            mkdir -p -- "${key%/*}"
            if [ -s "$key" ]; then
                ssh-keygen -y -f "$key" > "$1"
            else
                rm -f -- "$key" "$1"
                ssh-keygen -q -t ed25519 -N '' -f "$key"
            fi
            sync
        """
        key = PUBLIC_KEY.removesuffix(".pub")
        command = Command.script(script, PUBLIC_KEY)
        typed = command.typed_as("ssh-keygen -t ed25519 -N '' -f {key}", key=key)
        return (
            typed.scripted_as("[ -s {key} ] || ssh-keygen -q -t ed25519 -N '' -f {key}", key=key),
        )


@dataclass(frozen=True)
class AuthorizedKeys(Resource):
    """Whoever may log in to the rescue system as root may log in to the installed one.

    ``root`` is the installed root as the machine sees it; ``/`` once it is booted. ``way`` is how
    that is reached, if it is not as the rescue system is: its key is authorized as well.
    """

    root: str
    way: Target | None = None

    def probe(self, host: Host) -> Difference | None:
        """How many of the keys are missing."""
        script = """
            [ -s "$1" ] || exit 45
            there=$2
            [ -e "$there" ] || there=/dev/null
            grep -vxF -f "$there" -- "$1" || :
        """
        installed = AUTHORIZED if self.root == "/" else f"{self.root}{AUTHORIZED}"
        command = Command.script(script, AUTHORIZED, installed)
        result = host.inside("/").look(command, absent=(_NOBODY,))
        own = self._own_keys()
        if result is None and not own:
            return Difference(f"nobody is authorized to log in by key: {AUTHORIZED} is empty")
        lines = result.stdout.splitlines() if result else []
        missing = [line for line in lines if line.strip()]
        if own:
            there = (host.inside("/").read(installed) or "").split("\n")
            missing += [key for key in own if key not in there]
        if not missing:
            return None
        return Difference(f"authorize {len(missing)} key(s) to log in to dom0 as root")

    def commands(self) -> tuple[Command, ...]:
        """The rescue system's keys, added to dom0's."""
        installed = f"{self.root.rstrip('/')}{AUTHORIZED}"
        folder = installed.rpartition("/")[0]
        text = "mkdir -p -m 700 {folder}\ncat {keys} >> {installed}"
        command = Command.sh(text, folder=folder, keys=AUTHORIZED, installed=installed)
        added = "echo {key} >> {installed}"
        more = (Command.sh(added, key=key, installed=installed) for key in self._own_keys())
        return tuple(each.at(MACHINE) for each in (command, *more))

    def apply(self, host: Host, report: Report) -> None:
        """Add the keys; those that are there stay. Raises StepFailed where there is none."""
        allowed = (host.inside("/").read(AUTHORIZED) or "").split("\n")
        if not any((*allowed, *self._own_keys())):
            raise StepFailed(
                f"cannot authorize anybody: because {AUTHORIZED} is empty, so nobody could log in "
                "to dom0 after its boot",
                hint="log in to the rescue system as root by key, or name dom0_ssh.identity",
            )
        installed = host.inside(self.root)
        script = '[ -d "$1" ] || mkdir -m 700 -- "$1"'
        installed.run(Command.script(script, AUTHORIZED.rpartition("/")[0]))
        text = installed.read(AUTHORIZED) or ""
        text += "\n" if text and not text.endswith("\n") else ""
        wanted = dict.fromkeys((*allowed, *self._own_keys()))
        missing = [key for key in wanted if key and key not in text.split("\n")]
        installed.write(AUTHORIZED, text + "".join(f"{key}\n" for key in missing), mode=0o600)

    def _own_keys(self) -> tuple[str, ...]:
        return public_keys(resolve(self.way)) if self.way and self.way.identity else ()


@dataclass(frozen=True)
class OwnKeyPinned(Resource):
    """A system's own host key is among those pinned on this machine for the way to it.

    ``target`` is that way. The key is read over the connection there is, which is authenticated;
    keys that are pinned already (the rescue system's) stay. ``root`` is the system's root as the
    machine sees it.
    """

    target: Target
    root: str = "/"

    @property
    def _way(self) -> Target:
        return self.target.other or self.target

    def probe(self, host: Host) -> Difference | None:
        """Whether the key is not pinned yet."""
        return _unpinned("dom0", self._way, host.read(PUBLIC_KEY) or "")

    def commands(self) -> tuple[Command, ...]:
        """Read it where it is known to be the machine's own; ssh asks for it by the name."""
        return (_pinning(self._way, f"{self.root.rstrip('/')}{PUBLIC_KEY}"),)

    def apply(self, host: Host, report: Report) -> None:
        """Add the key to the known_hosts file that the ssh_config names."""
        _pin("dom0", self._way, host.read(PUBLIC_KEY) or "")


def _unpinned(whose: str, way: Target, key: str, *, alone: bool = False) -> Difference | None:
    """That a key is not pinned for the way to a system, or not ``alone``; "" is none yet."""
    if not key:
        return Difference(f"pin the host key of {whose}, once it is made")
    file, name, port = hostkeys.place(way)
    now = [hostkeys.describe(each) for each in hostkeys.known_keys([file], name, port)]
    wanted = fingerprint(key)
    if now == [wanted] or (wanted in now and not alone):
        return None
    row = {
        "host": hostkeys.host_name(name, port),
        "now": ", ".join(now) or "unknown",
        "wanted": wanted,
    }
    return Difference(f"pin the host key of {whose} in {file}", rows=(row,))


def _pin(whose: str, way: Target, key: str, *, alone: bool = False) -> None:
    if not key:
        raise StepFailed(
            f"cannot pin the host key of {whose}: because there is no host key yet",
            hint="run the steps before this one first",
        )
    hostkeys.pin(*hostkeys.place(way), key, alone=alone)


def _pinning(target: Target, key: str) -> Command:
    """How a person pins the key in a file of dom0's."""
    file, name, port = hostkeys.place(target)
    text = "ssh dom0 cat {key} | sed {named} >> {file}"
    if target.behind:
        text = "mkdir -p -m 700 {folder}\n" + text
    named = f"s|^|{hostkeys.host_name(name, port)} |"
    return Command.sh(text, key=key, named=named, file=file, folder=file.parent).at(CONTROLLER)


# sshd's settings: in a file that it was asked about before, and read by the daemon that runs.

RELOAD_SECONDS = 600.0
"""Deadline of having sshd read its files again, in seconds: an emulated host is slow."""

_REFUSED = 45

# sshd writes its pid file anew whenever it reads its files. Status 1: the file, or the folder that
# others come to and go from, was changed since then.
_HAS_READ = """
has_read() { # FILE PIDFILE
    [ -s "$2" ] && kill -0 "$(cat -- "$2")" 2> /dev/null || return 0
    [ -z "$(find "$1" "${1%/*}" -maxdepth 0 -cnewer "$2")" ]
}
pid_file() { sed -n 's/^pidfile //p'; }
"""

_LOOK = """
sshd=$1 config=$2 file=$3 booted=$4
status=0
used=$("$sshd" -T -f "$config" 2>&1) || status=45
printf '%s\n' "$used"
[ "$status" = 0 ] && [ -n "$booted" ] || exit "$status"
has_read "$file" "$(printf '%s\n' "$used" | pid_file)" || echo unread
"""

_TRY = """
sshd=$1 config=$2
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
receive "$folder/candidate" "$3" "$4"
# the first value that sshd reads counts
{ printf 'Include %s\\n' "$folder/candidate"; cat -- "$config"; } > "$folder/config"
"$sshd" -t -f "$folder/config" || exit 45
"""

_WAIT = """
sshd=$1 config=$2 file=$3
pid=$("$sshd" -T -f "$config" | pid_file)
gone=0
for round in $(seq 120); do
    if [ -s "$pid" ]; then
        ! has_read "$file" "$pid" || exit 0
    else
        # none for long: no sshd runs, and the next one reads them as it starts
        gone=$((gone + 1))
        [ "$gone" -lt 20 ] || exit 0
    fi
    sleep 0.5
done
"""


@dataclass(frozen=True)
class SshdSettings(Resource):
    """Settings in a file that sshd includes; sshd accepts them, uses them, and has read them.

    ``reload`` has a daemon that runs read its files again.
    """

    file: File
    reload: Command
    sshd: str = "/usr/sbin/sshd"
    config: str = "/etc/ssh/sshd_config"

    def probe(self, host: Host) -> Difference | None:
        """The diff of the file; else what sshd uses instead, or that it has yet to read it."""
        different = self.file.probe(host)
        if different is not None:
            return different
        values = (self.sshd, self.config, self.file.path, "yes" if host.root == "/" else "")
        result = host.run(Command.script(_HAS_READ + _LOOK, *values), check=False)
        if result.status == _REFUSED:
            said = " / ".join(result.stdout.strip().splitlines()[-3:])
            return Difference(f"sshd refuses its configuration: {said}", hint="sshd -t")
        if not result.ok:
            raise CommandFailed(result)
        used = parse_settings(result.stdout)
        rows = tuple(
            {"setting": name, "sshd uses": used[name], "wanted": wanted}
            for name, wanted in parse_settings(self.file.text()).items()
            if used.get(name, wanted) != wanted
        )
        if rows:
            return Difference(
                f"sshd does not use all of {self.file.path}",
                rows=rows,
                hint=f"make {self.config} include the file before its own settings",
            )
        if "unread" in result.stdout.splitlines():
            return Difference(f"have sshd read {self.file.path}")
        return None

    def commands(self) -> tuple[Command, ...]:
        """The file; sshd's word on it; what has it read."""
        return (*self.file.commands(), Command.argv(self.sshd, "-t"), self.reload)

    def apply(self, host: Host, report: Report) -> None:
        """Ask sshd about the text, write the file, have it read; raises StepFailed if refused."""
        text = self.file.text().encode()
        values = (self.sshd, self.config, *size_and_digest(text))
        refused = (
            f"cannot write {self.file.path}: because sshd refuses it: {SAID}",
            "run sshd -t there (nothing was changed)",
        )
        ask = Command.script(RECEIVE + _TRY, *values).given(text)
        host.change(ask.refusing({_REFUSED: refused}))
        self.file.apply(host, report)
        if host.root == "/":
            report("having sshd read its settings")
            host.run(self.reload, timeout=RELOAD_SECONDS)
            wait = Command.script(_HAS_READ + _WAIT, self.sshd, self.config, self.file.path)
            host.run(wait, timeout=RELOAD_SECONDS)


def parse_settings(text: str) -> Mapping[str, str]:
    """Settings of sshd_config(5) before the first Match, or of ``sshd -T``: the first one counts.

    Two words for the same mean the same here.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name.lower() == "match":
            break
        if name and not name.startswith("#"):
            value = value.strip().strip('"')
            same = {"prohibit-password": "without-password"}
            found.setdefault(name.lower(), same.get(value, value))
    return found


# Reaching a guest over SSH: its host key pinned on the controller, its answer awaited.
#
# The keys are made in dom0 before a guest's first boot (`xenlab.resources.guest`) and read from
# there over a connection that is itself pinned, so a guest's key is known before it is ever met.

KERNEL_SUFFIX = "-domU"
"""What a guest's own kernel is called at the end (``uname -r``)."""


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
        return _unpinned(self.name, self.target, self._key(host), alone=True)

    def commands(self) -> tuple[Command, ...]:
        """Read it where dom0 has it, and pin it."""
        return (_pinning(self.target, f"{self.records}/{self.name}/host_key.pub"),)

    def apply(self, host: Host, report: Report) -> None:
        """Pin the guest's key in the place of what was pinned for it before."""
        _pin(self.name, self.target, self._key(host), alone=True)

    def _key(self, host: Host) -> str:
        return host_keys(host, (self.name,), self.records)[self.name]


@dataclass(frozen=True)
class Unpinned(Resource):
    """The key that dom0 has on record for a guest is pinned no more."""

    name: str
    target: Target
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """Whether it is pinned."""
        key = host_keys(host, (self.name,), self.records)[self.name]
        file, name, port = hostkeys.place(self.target)
        now = [hostkeys.describe(each) for each in hostkeys.known_keys([file], name, port)]
        if not key or fingerprint(key) not in now:
            return None
        return Difference(f"take the host key of {self.name} out of {file}")

    def commands(self) -> tuple[Command, ...]:
        """Take it out, as ssh-keygen does."""
        file, name, port = hostkeys.place(self.target)
        text = "ssh-keygen -R {name} -f {file}"
        known_as = hostkeys.host_name(name, port)
        return (Command.sh(text, name=known_as, file=file).at(CONTROLLER),)

    def apply(self, host: Host, report: Report) -> None:
        """Take this key out, and no other of the name."""
        key = host_keys(host, (self.name,), self.records)[self.name]
        hostkeys.unpin(*hostkeys.place(self.target), key)


@dataclass(frozen=True)
class HostKeysDiffer(Check):
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


@dataclass(frozen=True)
class GuestAnswers(Resource):
    """A guest that answers over SSH with the kernel that was built for it.

    ``guest`` is the guest itself, whose transport knows when waiting for it is vain.
    """

    name: str
    guest: Host

    def probe(self, host: Host) -> Difference | None:
        """Whether it answers now, and with which kernel."""
        try:
            release = self.guest.run("uname -r", patience=0).stdout.strip()
        except (NoConnection, ConnectionLost) as error:
            return Difference(f"wait until {self.name} answers: {error.message}")
        if release.endswith(KERNEL_SUFFIX):
            return None
        return Difference(f"{self.name} runs kernel {release}, wanted is one …{KERNEL_SUFFIX}")

    def commands(self) -> tuple[Command, ...]:
        """Ask it which kernel it runs."""
        ask = Command.argv("ssh", self.name, "uname", "-r").at(CONTROLLER)
        return (ask.scripted_as("until ssh {name} uname -r; do sleep 5; done", name=self.name),)

    def apply(self, host: Host, report: Report) -> None:
        """Try to connect until the guest answers.

        Raises ConnectionRefused past the deadline, Unreachable at once where waiting is vain.
        """
        report(f"waiting for {self.name}")
        self.guest.transport.connect(host.stop, seconds=ANSWER_SECONDS)
