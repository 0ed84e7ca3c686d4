"""Reaching dom0 over SSH after its first boot: its host keys, who may log in, the pinned key."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab import hostkeys
from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.target import Target

PUBLIC_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
AUTHORIZED = "/root/.ssh/authorized_keys"

_NO_ROOT = (125, 126, 127)
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

    def apply(self, host: Host, report: Report) -> None:
        """Make what is missing; a private key that is there stays what it is."""
        report("making an SSH host key")
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
        host.run(Command.script(script, PUBLIC_KEY))


@dataclass(frozen=True)
class AuthorizedKeys(Resource):
    """Whoever may log in to the rescue system as root may log in to the installed one.

    ``root`` is the installed root as the machine sees it; ``/`` once it is booted.
    """

    root: str

    def probe(self, host: Host) -> Difference | None:
        """How many of the keys are missing."""
        script = """
            [ -s "$1" ] || exit 45
            there=$2
            [ -e "$there" ] || there=/dev/null
            grep -vxF -f "$there" -- "$1" || :
        """
        result = host.inside("/").run(self._command(script), check=False)
        if result.status == _NOBODY:
            return Difference(f"nobody is authorized to log in by key: {AUTHORIZED} is empty")
        if not result.ok:
            raise CommandFailed(result)
        missing = [line for line in result.stdout.splitlines() if line.strip()]
        if not missing:
            return None
        return Difference(f"authorize {len(missing)} key(s) to log in to dom0 as root")

    def apply(self, host: Host, report: Report) -> None:
        """Add the keys; those that are there stay. Raises StepFailed where there is none."""
        allowed = (host.inside("/").read(AUTHORIZED) or "").split("\n")
        if not any(allowed):
            raise StepFailed(
                f"{AUTHORIZED} is empty, so nobody could log in to dom0 after its boot",
                hint="log in to the rescue system as root by key, not by password",
            )
        installed = host.inside(self.root)
        script = '[ -d "$1" ] || mkdir -m 700 -- "$1"'
        installed.run(Command.script(script, AUTHORIZED.rpartition("/")[0]))
        text = installed.read(AUTHORIZED) or ""
        text += "\n" if text and not text.endswith("\n") else ""
        missing = [key for key in dict.fromkeys(allowed) if key and key not in text.split("\n")]
        installed.write(AUTHORIZED, text + "".join(f"{key}\n" for key in missing), mode=0o600)

    def _command(self, script: str) -> Command:
        installed = AUTHORIZED if self.root == "/" else f"{self.root}{AUTHORIZED}"
        return Command.script(script, AUTHORIZED, installed)


@dataclass(frozen=True)
class OwnKeyPinned(Resource):
    """A system's own host key is among those pinned on this machine for the way to it.

    ``target`` is that way. The key is read over the connection there is, which is authenticated;
    keys that are pinned already (the rescue system's) stay.
    """

    target: Target

    def probe(self, host: Host) -> Difference | None:
        """Whether the key is not pinned yet."""
        key = host.read(PUBLIC_KEY)
        if not key:
            return Difference("pin dom0's host key, once it is made")
        file, name, port = hostkeys.place(self.target)
        words = key.split()[:2]
        if any(
            [known.get_name(), known.get_base64()] == words
            for known in hostkeys.known_keys([file], name, port)
        ):
            return None
        row = {"host": hostkeys.host_name(name, port), "key": " ".join(words), "file": str(file)}
        return Difference(f"pin dom0's host key in {file}", rows=(row,))

    def apply(self, host: Host, report: Report) -> None:
        """Add the key to the known_hosts file that the ssh_config names."""
        key = host.read(PUBLIC_KEY)
        if not key:
            raise StepFailed(f"there is no {PUBLIC_KEY} yet")
        file, name, port = hostkeys.place(self.target)
        hostkeys.pin(file, name, port, key)
