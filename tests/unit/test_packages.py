"""Debian's answer to "how is software installed", asked of a real dpkg."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import lab_site

from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.apt import Apt, AptPackages
from xenlab.platform.choice import packages
from xenlab.platform.portage import Portage
from xenlab.resources.files import Relocated
from xenlab.transport.local import Local

HOST = Host(Local())


def test_what_is_installed_and_what_is_not() -> None:
    assert Apt().installed("dpkg", "coreutils").probe(HOST) is None
    found = Apt().installed("dpkg", "no-such-package").probe(HOST)
    assert found is not None
    assert found.summary == "install no-such-package"
    assert found.rows == ({"package": "no-such-package", "found": "not installed"},)


def test_a_root_that_is_not_there_has_nothing() -> None:
    nowhere = HOST.inside("/nowhere")
    assert Apt().installed("dpkg").probe(nowhere) is not None
    assert Apt().updated().probe(nowhere) is not None


@pytest.mark.parametrize(
    ("state", "fine"),
    [("ii ", True), ("hi ", True), ("iU ", False), ("iF ", False), ("rc ", False), ("un ", False)],
)
def test_half_installed_counts_as_missing(state: str, fine: bool) -> None:
    assert (AptPackages(("cron",)).compare(f"cron\t{state}\n") is None) is fine


@given(st.text())
def test_any_listing_is_survived(listing: str) -> None:
    AptPackages(("cron",)).compare(listing)


def test_what_is_not_wanted_and_there() -> None:
    assert Apt().removed("no-such-package").probe(HOST) is None
    assert Apt().removed().probe(HOST) is None
    found = Apt().removed("dpkg", "no-such-package").probe(HOST)
    assert found is not None
    assert found.summary == "remove dpkg"
    assert found.rows == ({"package": "dpkg", "found": "ii"},)
    with pytest.raises(
        BadInput, match="cannot remove openssh-server: because the chapters need it"
    ):
        Apt().removed("openssh-server")
    with pytest.raises(BadInput, match="a package's name must be"):
        Apt().removed("--purge")


@pytest.mark.parametrize("name", ["vim-", "--purge", "a b", "$(reboot)", "", "UPPER", "x\n"])
def test_a_name_that_apt_could_misread_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="a package's name must be"):
        Apt().installed("cron", name)


def test_the_store_goes_to_the_share() -> None:
    assert Apt().store("/srv/all") == (
        Relocated("/var/cache/apt/archives", "/srv/all/apt/archives"),
        Relocated("/var/lib/apt/lists", "/srv/all/apt/lists"),
    )


def test_a_site_that_nobody_has_written_down() -> None:
    assert isinstance(packages(lab_site()), Apt)
    gentoo = lab_site(platform="gentoo", software=[], shared_packages=[])
    assert isinstance(packages(gentoo), Portage)
    with pytest.raises(
        BadInput, match="platform gentoo-2006: because xenlab knows no package manager"
    ):
        packages(lab_site(platform="gentoo-2006", software=[], shared_packages=[]))
