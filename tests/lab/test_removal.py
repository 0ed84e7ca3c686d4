"""Software that nobody wants, and configuration that waits, in root directories (chroots)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from tests.lab.roots import Roots, quiet

from xenlab import parameters
from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab.platform.portage import Portage
from xenlab.recipes.base_configuration import waiting
from xenlab.resources.base import Resource

# the stage is built first, where it is not in the cache
pytestmark = pytest.mark.timeout(2400)

PORTAGE = Portage(parameters.Portage())
GREETING, CHEER = "app-text/greeting", "app-text/cheer"
PUBLISH = """
    cd /var/db/repos/xenlab/app-text
    mkdir greeting cheer
    cat > greeting/greeting-1.ebuild <<'END'
EAPI=8
DESCRIPTION="A file in /etc"
SLOT=0
KEYWORDS="amd64"
S="${WORKDIR}"
src_install() {
    insinto /etc
    newins - greeting.conf <<< "Good day"
    insopts -m 0600
    newins - greeting.secret <<< "a new secret"
}
END
    sed '/^src_install/,$d' greeting/greeting-1.ebuild > cheer/cheer-1.ebuild
    echo 'RDEPEND="app-text/greeting"' >> cheer/cheer-1.ebuild
"""


@pytest.fixture(scope="module")
def host(roots: Roots) -> Host:
    """A domain whose tree has two packages more."""
    host = roots.domain("greeter")
    host.run(Command.script(PUBLISH))
    for resource in PORTAGE.settled():
        resource.apply(host, quiet)
    return host


def bring_about(resource: Resource, host: Host) -> None:
    assert resource.probe(host) is not None
    resource.apply(host, quiet)
    resource.verify(host)


def test_a_changed_configuration_file_is_never_overwritten(host: Host) -> None:
    host.write("/etc/greeting.conf", "Grüß Gott\n")
    host.write("/etc/greeting.secret", "an old secret\n", mode=0o600)
    bring_about(PORTAGE.installed(GREETING, CHEER), host)
    assert host.read("/etc/greeting.conf") == "Grüß Gott\n"
    book = cast(Chapter, SimpleNamespace(target=host, packages=PORTAGE))
    rows = waiting(book).to_dict("records")
    shown = {
        "file": "/etc/greeting.conf",
        "new version": "/etc/._cfg0000_greeting.conf",
    }
    hidden = "not shown: not everybody may read it"
    assert [row for row in rows if row["file"] == shown["file"]] == [
        {**shown, "diff": "-Grüß Gott"},
        {**shown, "diff": "+Good day"},
    ]
    assert [row["diff"] for row in rows if row["file"] == "/etc/greeting.secret"] == [hidden]
    assert "old secret" not in str(rows)


def test_what_dpkg_has_kept_is_found_too(host: Host) -> None:
    host.write("/etc/host.conf.dpkg-dist", "multi off\n")
    book = cast(Chapter, SimpleNamespace(target=host, packages=Apt()))
    rows = waiting(book)
    assert set(rows["file"]) == {"/etc/host.conf"}
    assert "+multi off" in list(rows["diff"])


def test_portage_removes_what_nobody_needs(host: Host) -> None:
    if (wanted := PORTAGE.installed(GREETING, CHEER)).probe(host) is not None:
        bring_about(wanted, host)
    with pytest.raises(StepFailed, match=f"{GREETING} is needed by something else:(.|\n)*{CHEER}"):
        PORTAGE.removed(GREETING).apply(host, quiet)
    assert PORTAGE.installed(GREETING).probe(host) is None
    bring_about(PORTAGE.removed(GREETING, CHEER), host)
    assert PORTAGE.removed(GREETING, CHEER).probe(host) is None
    # what the base system provides is none of Portage's
    assert PORTAGE.removed("dev-vcs/git").probe(host) is None


def test_apt_removes_what_nobody_needs(host: Host) -> None:
    with pytest.raises(StepFailed, match="libcurl3-gnutls is needed by git"):
        Apt().removed("libcurl3-gnutls").apply(host, quiet)
    assert Apt().installed("git", "libcurl3-gnutls").probe(host) is None
    bring_about(Apt().removed("wget", "no-such-package"), host)
    assert Apt().installed("wget").probe(host) is not None
