"""What every domain gets, or shall not have, in a root directory of the lab's stage (chroot)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
from tests.gentoo.roots import Roots, quiet

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.configuration import log_written, unmerged_table
from xenlab.chapters.shared_usr import guests_unmerged_table
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab.platform.openrc import OpenRc
from xenlab.platform.portage import Portage
from xenlab.resources.base import Resource
from xenlab.site import schema as parameters

# the stage is built first, where it is not in the cache
pytestmark = pytest.mark.timeout(2400)

PORTAGE = Portage(parameters.Portage())
GREETING, CHEER = "app-text/greeting", "app-text/cheer"
HIDDEN = "not shown: not everybody may read it"
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

ALTERNATIVES = """
    mkdir -p /srv/debian
    cd /srv/debian
    for name in first second user; do
        mkdir -p "$name/DEBIAN"
        printf '%s\\n' "Package: $name" 'Version: 1' 'Architecture: all' 'Maintainer: nobody' \\
            'Description: a package' > "$name/DEBIAN/control"
        [ "$name" != user ] || printf '%s\\n' 'Depends: first | second' 'Essential: yes' \\
            >> "$name/DEBIAN/control"
        dpkg-deb --root-owner-group --build "$name"
        cat "$name/DEBIAN/control"
        printf '%s\\n' "Filename: ./$name.deb" "Size: $(stat -c %s "$name.deb")" \\
            "SHA256: $(sha256sum "$name.deb" | cut -d ' ' -f 1)" ""
    done | grep -v '^dpkg-deb' > Packages
    echo 'deb [trusted=yes] file:/srv/debian ./' > /etc/apt/sources.list.d/alternatives.list
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
    chapter = cast(Chapter, SimpleNamespace(target=host, packages=PORTAGE))
    rows = unmerged_table(chapter)
    new = set(rows.loc[rows["file"] == "/etc/greeting.conf", "new version"])
    assert new == {"/etc/._cfg0000_greeting.conf"}
    assert shown(rows, "/etc/greeting.conf") == ["@@ -1 +1 @@", "-Grüß Gott", "+Good day"]
    assert shown(rows, "/etc/greeting.secret") == [HIDDEN]
    assert "an old secret" not in rows.to_csv() and "a new secret" not in rows.to_csv()


def test_what_dpkg_has_kept_is_found_too(host: Host) -> None:
    build = """
        cd /tmp
        for version in 1 2; do
            mkdir -p package/DEBIAN package/etc
            printf '%s\\n' 'Package: greeter' "Version: $version" 'Architecture: all' \\
                'Maintainer: nobody' 'Description: a file in /etc' > package/DEBIAN/control
            echo /etc/greeter.conf > package/DEBIAN/conffiles
            echo "version $version" > package/etc/greeter.conf
            dpkg-deb --root-owner-group --build package "greeter-$version.deb"
        done
        dpkg --install greeter-1.deb
        echo "version 1, changed" > /etc/greeter.conf
        dpkg --force-confold --install greeter-2.deb
    """
    host.run(Command.script(build))
    chapter = cast(Chapter, SimpleNamespace(target=host, packages=Apt()))
    rows = unmerged_table(chapter)
    changed = ["@@ -1 +1 @@", "-version 1, changed", "+version 2"]
    assert shown(rows, "/etc/greeter.conf") == changed
    with_guest = SimpleNamespace(
        mode="apply",
        site=SimpleNamespace(lan_guests=[SimpleNamespace(name="domu1")]),
        guest={"domu1": host}.get,
        packages=Apt(),
    )
    in_guests = guests_unmerged_table(cast(Chapter, with_guest))
    assert set(in_guests["guest"]) == {"domu1"}
    assert shown(in_guests, "/etc/greeter.conf") == changed


def test_what_cannot_be_shown_is_named_all_the_same(host: Host) -> None:
    prepare = """
        mkdir -m 700 /etc/closed
        for file in /etc/linked /etc/closed/inside /etc/gone /etc/same /etc/binary; do
            echo "a password" > "$file"
            echo "another password" > "$file.dpkg-dist"
        done
        chmod 600 /etc/linked
        mv /etc/linked /etc/linked-to
        ln -s linked-to /etc/linked
        rm /etc/gone
        cp /etc/same /etc/same.dpkg-dist
        printf 'a\\0b' > /etc/binary
    """
    host.run(Command.script(prepare))
    chapter = cast(Chapter, SimpleNamespace(target=host, packages=Apt()))
    rows = unmerged_table(chapter)
    assert shown(rows, "/etc/linked") == [HIDDEN]
    assert shown(rows, "/etc/closed/inside") == [HIDDEN]
    assert shown(rows, "/etc/gone") == ["the old one is gone"]
    assert shown(rows, "/etc/same") == ["the same"]
    binary = "Binary files /etc/binary and /etc/binary.dpkg-dist differ"
    assert shown(rows, "/etc/binary") == [binary]
    assert "password" not in rows.to_csv()


def shown(rows: pd.DataFrame, file: str) -> list[str]:
    return list(rows.loc[rows["file"] == file, "diff"])


def test_portage_removes_what_nobody_needs(host: Host) -> None:
    if (wanted := PORTAGE.installed(GREETING, CHEER)).probe(host) is not None:
        bring_about(wanted, host)
    needed = f"cannot remove {GREETING}: because something else needs it:(.|\n)*{CHEER}"
    with pytest.raises(StepFailed, match=needed):
        PORTAGE.removed(GREETING).apply(host, quiet)
    assert PORTAGE.installed(GREETING).probe(host) is None
    bring_about(PORTAGE.removed(GREETING, CHEER), host)
    assert PORTAGE.removed(GREETING, CHEER).probe(host) is None
    # what the base system provides is none of Portage's
    assert PORTAGE.removed("dev-vcs/git").probe(host) is None


def test_apt_removes_what_nobody_needs(host: Host) -> None:
    with pytest.raises(StepFailed, match="remove libcurl3-gnutls alone: .*remove git"):
        Apt().removed("libcurl3-gnutls").apply(host, quiet)
    # what depends on it would be content with another one, which apt-get would install
    host.run(Command.script(ALTERNATIVES))
    Apt().updated().apply(host, quiet)
    Apt().installed("user", "first").apply(host, quiet)
    with pytest.raises(StepFailed, match="remove first alone: .*install second"):
        Apt().removed("first").apply(host, quiet)
    assert Apt().installed("git", "libcurl3-gnutls", "user", "first").probe(host) is None
    bring_about(Apt().removed("wget", "no-such-package"), host)
    assert Apt().installed("wget").probe(host) is not None


def test_a_log_is_where_its_daemon_writes_it(host: Host) -> None:
    def written(*services: str) -> bool:
        site = SimpleNamespace(services=services)
        chapter = cast(Chapter, SimpleNamespace(site=site, services=OpenRc()))
        return log_written(chapter).probe(host) is None

    host.run("rm -f /var/log/messages /var/log/syslog")
    assert written("ssh", "cron")
    assert not written("ssh", "syslog-ng")
    host.write("/var/log/messages", "a line\n")
    assert written("ssh", "syslog-ng")
    assert not written("rsyslog")
