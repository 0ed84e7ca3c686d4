"""Target: where an SSH host is and who logs in; aliases resolved by OpenSSH's own reader."""

from __future__ import annotations

import difflib
import getpass
import os
import pwd
import re
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from xenlab.errors import BadInput, Unreachable
from xenlab.transport.become import Become

SSH_PORT = 22
METHODS = ("publickey", "keyboard-interactive", "password")
"""The ways to log in that are tried, in the order of OpenSSH."""
DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
DEFAULT_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
FORBIDDEN = re.compile(r"^-|[\s\0'\"`$\\;&<>|(){}*?!#~]")


@dataclass(frozen=True)
class Target:
    """What a person says about a host.

    ``host`` is a host name, an address, or an alias of the ssh_config file ``config``. A field
    that is not empty wins over that file. No ssh_config is read unless ``config`` names one: a run
    must not change its meaning with the account it runs in. ``~`` in these paths is what a shell
    makes of it, HOME; in those that the file or OpenSSH's defaults name, see `expanded`.

    ``address`` is where the host is, whatever the file says. A host ``behind`` another one is
    reached through that, with its user and keys; the own key is pinned under its mere name. The
    ``other`` way leads to the same machine when another system runs there. ``become`` is how a
    user that is not root becomes root there.
    """

    host: str
    config: str = ""
    port: int = 0
    user: str = ""
    identity: str = ""
    known_hosts: str = ""
    address: str = ""
    behind: Target | None = None
    other: Target | None = None
    become: Become | None = None


@dataclass(frozen=True)
class Route:
    """A target with everything resolved: what it takes to connect.

    ``agent`` is the socket of the SSH agent, "" where none is asked. ``strict`` is what
    StrictHostKeyChecking says: yes, ask, accept-new or no. ``algorithms`` are the ciphers, MACs and
    so on that the ssh_config allows, by OpenSSH's keyword in small letters.
    """

    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    known_hosts: tuple[Path, ...]
    key_alias: str = ""
    jump: str = ""
    proxy_command: str = ""
    certificates: tuple[Path, ...] = ()
    agent: str = ""
    strict: str = "yes"
    hash_names: bool = False
    revoked: Path | None = None
    methods: tuple[str, ...] = METHODS
    batch: bool = False
    family: str = "any"
    bind: str = ""
    timeout: float = 0.0
    algorithms: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def address(self) -> str:
        """``host:port`` for messages, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def pinned_as(self) -> tuple[str, int]:
        """The name and the port that the host's key is pinned under."""
        return (self.key_alias, SSH_PORT) if self.key_alias else (self.host, self.port)

    def allows(self, kind: str) -> tuple[str, ...] | None:
        """The algorithms of a kind that the ssh_config allows, None where none was read."""
        return dict(self.algorithms).get(kind)


def resolve(target: Target) -> Route:
    """Everything needed to connect to a target.

    Raises BadInput where a named file is missing or the ssh_config cannot be read.
    """
    _require_names(target)
    behind = target.behind
    if behind is not None:
        return _resolved_behind(target, behind)
    settings = _Settings(_read_config(target) if target.config else {})
    one = settings.one
    host = target.address or one("hostname", target.host)
    port = target.port or int(one("port", str(SSH_PORT)))
    user = target.user or one("user") or getpass.getuser()
    expand = _Expansion(target, host, port, user, one("hostkeyalias"), one("controlpath")).expand
    if target.identity:
        identities: tuple[Path, ...] = (_existing(target.identity, "identity file", target.host),)
    else:
        named = settings.all("identityfile", DEFAULT_KEYS)
        identities = tuple(expanded(expand(name)) for name in named)
    if target.known_hosts:
        known: tuple[Path, ...] = (_existing(target.known_hosts, "known_hosts file", target.host),)
    elif settings.found:
        # ssh -G expands their tokens itself
        lists = (one("userknownhostsfile"), one("globalknownhostsfile"))
        known = tuple(expanded(name) for text in lists for name in _split_paths(text))
    else:
        known = tuple(expanded(name) for name in DEFAULT_KNOWN_HOSTS)
    return Route(
        host=host,
        port=port,
        user=user,
        identities=identities,
        identities_only=bool(target.identity) or one("identitiesonly") == "yes",
        known_hosts=known,
        key_alias=one("hostkeyalias"),
        jump=one("proxyjump"),
        proxy_command=expand(one("proxycommand")),
        certificates=tuple(expanded(expand(n)) for n in settings.all("certificatefile")),
        agent=_agent(settings.found.get("identityagent", ["SSH_AUTH_SOCK"])[0]),
        strict=_STRICT.get(one("stricthostkeychecking", "yes"), one("stricthostkeychecking")),
        hash_names=one("hashknownhosts") == "yes",
        revoked=expanded(one("revokedhostkeys")) if one("revokedhostkeys") else None,
        methods=settings.methods(),
        batch=one("batchmode") == "yes",
        family=one("addressfamily", "any"),
        bind=one("bindaddress"),
        timeout=float(one("connecttimeout", "0") or 0),
        algorithms=tuple((k, tuple(one(k).split(","))) for k in _ALGORITHMS if one(k)),
    )


_ALGORITHMS = (
    "ciphers",
    "macs",
    "kexalgorithms",
    "hostkeyalgorithms",
    "pubkeyacceptedalgorithms",
    "casignaturealgorithms",
)

_STRICT = {"true": "yes", "false": "no", "off": "no"}


@dataclass(frozen=True)
class _Settings:
    """What ``ssh -G`` has printed."""

    found: dict[str, list[str]]

    def one(self, key: str, default: str = "") -> str:
        value = self.found.get(key, [default])[0]
        return "" if value.lower() == "none" else value

    def all(self, key: str, default: tuple[str, ...] = ()) -> list[str]:
        return [one for one in self.found.get(key, default) if one.lower() != "none"]

    def methods(self) -> tuple[str, ...]:
        preferred = self.one("preferredauthentications", ",".join(METHODS)).split(",")
        switches = {
            "publickey": "pubkeyauthentication",
            "keyboard-interactive": "kbdinteractiveauthentication",
            "password": "passwordauthentication",
        }
        off = {name for name, key in switches.items() if self.one(key) in ("no", "false")}
        return tuple(name for name in preferred if name in METHODS and name not in off)


@dataclass(frozen=True)
class _Expansion:
    """OpenSSH's tokens and ``${NAME}`` in what ``ssh -G`` prints as it stands in the file."""

    target: Target
    host: str
    port: int
    user: str
    alias: str
    hashed: str
    """What %C stands for: OpenSSH has computed it, since its parts differ between versions."""

    def expand(self, text: str) -> str:
        """Raises BadInput for a token or a variable that there is not."""
        local = socket.gethostname()
        tokens = {
            "%": "%",
            "C": self.hashed,
            "d": str(expanded("~")),
            "h": self.host,
            "i": str(os.getuid()),
            "k": self.alias or self.target.host,
            "L": local.partition(".")[0],
            "l": local,
            "n": self.target.host,
            "p": str(self.port),
            "r": self.user,
            "u": getpass.getuser(),
        }

        def put(found: re.Match[str]) -> str:
            value = tokens.get(found[1]) if found[1] else os.environ.get(found[2])
            if value is None:
                reason = f"{found[0]} is no token" if found[1] else f"{found[2]} is not set"
                raise BadInput(
                    f"cannot use “{text}” of {self.target.config}: because {reason}",
                    where=self.target.host,
                    hint="correct that line, or set the variable",
                )
            return value

        return re.sub(r"%(.)|\$\{(\w+)\}", put, text)


def _agent(named: str) -> str:
    """The socket that IdentityAgent leads to, "" where no agent is to be asked."""
    if named.lower() == "none":
        return ""
    if named == "SSH_AUTH_SOCK" or named.startswith("$"):
        return os.environ.get(named.lstrip("$"), "")
    return str(expanded(named))


def _resolved_behind(target: Target, behind: Target) -> Route:
    machine = resolve(
        replace(
            behind,
            user=target.user or behind.user,
            identity=target.identity or behind.identity,
            known_hosts="",
        )
    )
    return replace(
        machine,
        host=target.address,
        port=target.port or SSH_PORT,
        # xenlab's own file, which the first pin makes
        known_hosts=(Path(target.known_hosts).expanduser(),),
        key_alias=target.host,
        jump="",
        proxy_command="",
        # what is said of the host's own key says nothing of a guest's
        strict="yes",
    )


def is_named(target: Target) -> bool:
    """Whether the ssh_config has a place or a block of its own for a host; raises as `resolve`."""
    if not target.config:
        return False
    aliases = config_aliases(Path(target.config).expanduser())
    return target.host in aliases or _read_config(target)["hostname"] != [target.host.lower()]


def _require_names(target: Target) -> None:
    # A ProxyCommand is a shell's line, into which OpenSSH puts both as they are.
    if not target.host or FORBIDDEN.search(target.host):
        raise BadInput(
            f"cannot connect to {target.host!r}: because that is no host name",
            hint="give a name, address or alias",
        )
    if FORBIDDEN.search(target.user):
        raise BadInput(
            f"cannot log in as {target.user!r}: because that is no user name",
            where=target.host,
            hint="correct ssh.user",
        )


def expanded(path: str) -> Path:
    """A path with ``~`` as OpenSSH expands it: by the account's passwd entry, whatever HOME is."""
    if path != "~" and not path.startswith("~/"):
        return Path(path).expanduser()
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir + path[1:])
    except KeyError:
        # OpenSSH does not run at all for an account that has no entry
        return Path(path).expanduser()


def hops(jump: str) -> list[Target]:
    """The hosts of a ProxyJump value, in the order in which they are passed.

    Raises BadInput for a hop that is no ``[user@]host[:port]``.
    """
    found = []
    for word in jump.split(","):
        match = re.fullmatch(
            r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+))"
            r"(?::(?P<port>\d+))?/?",
            word.strip(),
        )
        if not match:
            raise BadInput(
                f"cannot follow ProxyJump {jump!r}: because {word.strip()!r} names no host",
                hint="write [user@]host[:port], one after the other, commas between them",
            )
        host = match["six"] or match["host"]
        found.append(Target(host, port=int(match["port"] or 0), user=match["user"] or ""))
    return found


def unknown_name(target: Target, route: Route) -> Unreachable:
    """The error for a name that neither the resolver nor the ssh_config knows."""
    if not target.config:
        return Unreachable(
            f"cannot connect to {route.host}: because the name is not known",
            where=target.host,
            hint="check ssh.host",
        )
    aliases = config_aliases(Path(target.config).expanduser())
    near = difflib.get_close_matches(target.host, aliases, 1, 0.5)
    named = f"{near[0]}?" if near else "one of " + ", ".join(aliases) if aliases else ""
    return Unreachable(
        f"cannot connect to {route.host}: because it is neither an alias of {target.config} nor a "
        "name that resolves",
        where=target.host,
        hint=f"did you mean {named}" if named else "correct the name, or its HostName there",
    )


def config_aliases(config: Path) -> list[str]:
    """The literal aliases that an ssh_config file itself names, for suggestions."""
    try:
        text = config.read_text(errors="replace")
    except OSError:
        return []
    lines = re.findall(r"^\s*host[\s=]+(.+)$", text, re.IGNORECASE | re.MULTILINE)
    words = [word.strip('"') for line in lines for word in line.split()]
    return list(dict.fromkeys(w for w in words if not set(w) & set("*?!")))


def _read_config(target: Target) -> dict[str, list[str]]:
    config = _existing(target.config, "ssh_config file", target.host)
    # OpenSSH's own reader knows Include, Match and every other rule that people's files use.
    command = ["ssh", "-G", "-T", "-F", str(config), "-o", "ControlPath=%C"]
    command += ["-p", str(target.port)] if target.port else []
    command += ["-l", target.user] if target.user else []
    try:
        done = subprocess.run(
            [*command, "--", target.host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError:
        raise BadInput(
            f"cannot read {config}: because the program ssh, which does that, is missing",
            hint="apt-get install openssh-client",
        ) from None
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"cannot read {config}: because ssh took more than 30 s", hint="look at its Match exec"
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or ["ssh -G failed"]
        raise BadInput(
            f"cannot use {config} for {target.host}: because {reason[0]}", hint="correct that line"
        )
    settings: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key, []).append(value)
    return settings


def _existing(name: str, what: str, where: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() or not path.exists():
        raise BadInput(
            f"cannot use the {what} {path}: because there is no such file",
            where=where,
            hint="check the path",
        )
    return path


def _split_paths(text: str) -> list[str]:
    """Paths out of ``ssh -G``, which prints them unquoted: a path that exists may hold spaces."""
    words, found = text.split(), []
    while words:
        lengths = range(len(words), 1, -1)
        taken = next((n for n in lengths if Path(" ".join(words[:n])).exists()), 1)
        found.append(" ".join(words[:taken]))
        del words[:taken]
    return found
