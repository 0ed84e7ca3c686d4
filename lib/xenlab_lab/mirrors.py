"""Where Debian packages come from, and what the relay of a lab lets through of that."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from xenlab import durable
from xenlab.cache import Release
from xenlab.errors import LabError
from xenlab_lab import relay, tools

# Where Debian packages come from: the Debian entries of this machine's own apt configuration.

SUITE: Release = "bookworm"
"""What the rescue system is made of, and a stage that has no release of its own."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FORMAT = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)"
_PARTS = {"Debian": ("", "-updates"), "Debian-Security": ("-security",)}
_LOGIN = re.compile(r'(?<=://)[^/@\s"]+@')


def debian_sources(suite: Release = SUITE) -> list[str]:
    """One-line apt entries for a suite, from the mirrors this machine uses itself.

    Entries of other origins never appear. A machine that has Debian entries for another release
    lends its mirrors; one that has none gives an empty list, and mmdebstrap's own default
    mirrors are used. Raises LabError if apt cannot be asked.
    """
    return sources_from(tools.output(["apt-get", "indextargets", "--format", _FORMAT]), suite)


def sources_from(listing: str, suite: Release = SUITE) -> list[str]:
    """The entries for a suite out of what `apt-get indextargets` prints, in the same order."""
    exact: list[str] = []
    lent: list[str] = []
    for line in listing.splitlines():
        kind, origin, label, codename, uri, component = line.split("|")
        if (kind, origin, component) != ("Packages", "Debian", "main") or label not in _PARTS:
            continue
        if codename in {suite + part for part in _PARTS[label]}:
            exact.append(f"deb {uri} {codename} main")
        lent.extend(f"deb {uri} {suite}{part} main" for part in _PARTS[label])
    return list(dict.fromkeys(exact or lent))


def without_login(text: str) -> str:
    """A text whose URLs hold no user and no password: what goes into a stage, or a record."""
    return _LOGIN.sub("", text)


def require_keyring() -> Path:
    """Debian's keys; raises LabError if they are not installed."""
    if not KEYRING.exists():
        raise LabError(
            f"cannot check Debian's packages: because there is no {KEYRING}",
            hint="apt-get install debian-archive-keyring",
        )
    return KEYRING


# A Debian root directory as a tar file, built by mmdebstrap without what nobody reads.

NO_DOCUMENTS = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/i18n/*", "/usr/share/lintian/*", "/usr/share/bug/*",
)  # fmt: skip
COPYRIGHTS = "/usr/share/doc/*/copyright"

FORGET_LOGIN = """find "$1"/etc/apt -type f -exec sed -i -E 's#(://)[^/@[:space:]]+@#\\1#g' {} +"""
"""What this machine logs in with at a mirror or a proxy stays here, and out of every image."""


def mmdebstrap(
    tree: Path,
    packages: Sequence[str],
    entries: Sequence[str],
    options: Sequence[str],
    report: tools.Report,
    what: str,
    suite: Release = SUITE,
) -> None:
    """Build ``tree`` of these packages from these apt entries; raises LabError."""
    report(what, None)
    tools.run(
        [
            "mmdebstrap",
            f"--keyring={require_keyring()}",
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in NO_DOCUMENTS),
            f"--dpkgopt=path-include={COPYRIGHTS}",
            *options,
            f"--customize-hook={FORGET_LOGIN}",
            suite,
            tree,
            *entries,
        ],
        report=report,
        what=what,
        hint="run `apt-get update` on this machine",
    )
    if not tree.exists():
        raise LabError(
            f"cannot go on: because mmdebstrap left no {tree.name}", hint="run the same again"
        )


# What the relay of a lab lets through: the mirrors of this machine's own apt configuration.
#
# Each with the login and the proxy by which apt itself would reach it (apt.conf(5),
# apt_auth.conf(5), apt-transport-http(1)). They are this machine's, so the file is its owner's
# alone.

SETTINGS, STARTER = "relay.json", "relay"
_OPTION = re.compile(r'^(Acquire::https?::Proxy(?:::\S+)?) "(.*)";$')
_DIRECT = ("", "DIRECT", "false")


def write(folder: Path) -> None:
    """Write what the relay lets through now, and the script that starts it, into a lab's folder.

    That is nothing where this machine has no Debian mirror itself: a lab there needs its network
    open. Raises LabError if apt cannot be asked.
    """
    listed = [entry.split()[1] for entry in debian_sources()]
    found = mirrors(listed, tools.output(["apt-config", "dump"]), _logins(), os.environ)
    durable.replace(folder / SETTINGS, f"{json.dumps(found, indent=2)}\n".encode())
    # QEMU takes the line that it runs apart at each blank
    words = [sys.executable, "-I", "-S", str(Path(relay.__file__).resolve()), SETTINGS]
    durable.replace(folder / STARTER, f"exec {shlex.join(words)}\n".encode())


def mirrors(
    urls: Iterable[str], options: str, logins: str, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """relay.json: each mirror's place and path, the proxy on the way ("": none), the login ("").

    ``options`` is what `apt-config dump` prints, ``logins`` the text of auth.conf.
    """
    settings = {match[1]: match[2] for match in map(_OPTION.match, options.splitlines()) if match}
    found = []
    for text in dict.fromkeys(urls):
        url = urlsplit(text)
        if url.scheme in ("http", "https") and url.hostname:
            found.append(
                {
                    "place": relay.place(url),
                    "path": unquote(url.path).rstrip("/") + "/",
                    "proxy": _proxy(url, settings, environment, logins),
                    "login": _login(url, logins),
                }
            )
    return found


def _proxy(
    url: SplitResult, options: Mapping[str, str], environment: Mapping[str, str], logins: str
) -> str:
    """The proxy by which apt reaches a mirror; what http says holds for https, too."""
    host = url.hostname or ""
    methods = ("https", "http") if url.scheme == "https" else ("http",)
    names = [f"Acquire::{method}::Proxy::{host}" for method in methods]
    names += [f"Acquire::{method}::Proxy" for method in methods]
    if _without(host, environment.get("no_proxy", "")):
        return ""
    configured = next((options[name] for name in names if options.get(name)), None)
    proxy = environment.get(f"{url.scheme}_proxy", "") if configured is None else configured
    if proxy in _DIRECT:
        return ""
    way = urlsplit(proxy)
    login = _login(way, logins)
    return (
        way._replace(netloc=f"{quote(login, ':')}@{way.netloc}").geturl()
        if login and way.username is None
        else proxy
    )


def _without(host: str, domains: str) -> bool:
    """Whether no_proxy names a host, as apt reads it: a name, or the end of one after a dot."""
    return any(
        host == each or (each.startswith(".") and host.endswith(each))
        for each in domains.split(",")
    )


def _login(url: SplitResult, logins: str) -> str:
    """USER:PASSWORD at a mirror that is asked by http: its URL's, or that of auth.conf.

    By https a domain speaks with the mirror itself, and the relay has nothing to add.
    """
    if url.scheme == "https":
        return ""
    if url.username is not None:
        return f"{unquote(url.username)}:{unquote(url.password or '')}"
    machine, user, password = "", "", ""
    words = iter(re.sub(r"^\s*#.*$", "", logins, flags=re.M).split())
    for word in words:
        if word == "machine":
            machine, user = next(words, ""), ""
        elif word == "login":
            user = next(words, "")
        elif word == "password":
            password = next(words, "")
            if _meant(machine, url):
                return f"{user}:{password}"
    return ""


def _meant(machine: str, url: SplitResult) -> bool:
    """Whether a line of auth.conf is about a mirror: without "http://" it is about https alone."""
    scheme, separator, rest = machine.partition("://")
    if not separator or scheme != url.scheme:
        return False
    named = urlsplit(f"//{rest}")
    path = url.path.rstrip("/") + "/"
    return (
        named.hostname == url.hostname
        and named.port in (None, url.port)
        and path.startswith(named.path)
    )


def _logins() -> str:
    places = [Path("/etc/apt/auth.conf"), *sorted(Path("/etc/apt/auth.conf.d").glob("*.conf"))]
    return "\n".join(place.read_text() for place in places if place.is_file())
