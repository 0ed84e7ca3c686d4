"""Gentoo's answer to "how is software installed": what its package database says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import lab_site

from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.portage import Portage, PortagePackages, parse_installed, split_version
from xenlab.resources.files import File, Relocated
from xenlab.site import schema as parameters
from xenlab.transport.local import Local

HOST = Host(Local())
SITE = parameters.Portage(
    cflags="-O2 -pipe -march=x86-64",
    use=["pcre", "-static"],
    package_use=["sys-apps/less -pcre", "app-shells/dash static"],
)
LESS = "sys-apps/less"


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("app-text/tree-2.1.0", "app-text/tree"),
        ("sys-apps/less-590", "sys-apps/less"),
        ("app-shells/dash-0.5.12-r1", "app-shells/dash"),
        ("sys-libs/db-4.8.30_p1-r2", "sys-libs/db"),
        ("media-libs/gst-plugins-base-1.0", "media-libs/gst-plugins-base"),
        ("app-misc/foo-1-2.5b_rc3", "app-misc/foo-1"),
        ("net-misc/x-1.0_alpha", "net-misc/x"),
        ("app-text/tree", None),
        ("", None),
    ],
)
def test_where_a_name_ends_and_its_version_begins(package: str, name: str | None) -> None:
    assert split_version(package) == name


def found(use: str, knows: str = "+pcre doc") -> str:
    return f"installed\tsys-apps/less-590\t{use}\t{knows}\n"


def wanted(*flags: str) -> PortagePackages:
    settings = parameters.Portage(use=[], package_use=[f"{LESS} {' '.join(flags)}"])
    return PortagePackages((LESS,), Portage(settings).flags([LESS]))


@pytest.mark.parametrize(
    ("flags", "listing", "state"),
    [
        (("pcre",), "", "not installed"),
        (("pcre",), found("elibc_glibc pcre"), ""),
        (("pcre",), found("elibc_glibc"), "sys-apps/less-590 with USE -pcre"),
        (("-pcre",), found("pcre"), "sys-apps/less-590 with USE pcre"),
        (("doc", "-pcre"), found("pcre"), "sys-apps/less-590 with USE -doc pcre"),
        # what the package does not know cannot be wrong with it
        (("X",), found("pcre"), ""),
        # the base system has it, and nobody can say how it was built
        (("pcre",), "provided\tsys-apps/less-590\n", ""),
        (
            ("pcre",),
            "provided\tsys-apps/less-590\n" + found(""),
            "sys-apps/less-590 with USE -pcre",
        ),
        # another package whose name begins alike
        (("pcre",), "installed\tsys-apps/less-9a-1.0\tpcre\tpcre\n", "not installed"),
    ],
)
def test_what_is_missing_or_was_built_otherwise(
    flags: tuple[str, ...], listing: str, state: str
) -> None:
    difference = wanted(*flags).compare(listing)
    assert (difference.rows[0]["found"] if difference else "") == state
    assert difference is None or difference.summary == f"install {LESS}"


def test_a_package_s_own_flags_count_more_than_the_site_s() -> None:
    assert Portage(SITE).flags([LESS, "app-shells/dash", "app-text/tree"]) == {
        LESS: {"pcre": False, "static": False},
        "app-shells/dash": {"pcre": True, "static": True},
        "app-text/tree": {"pcre": True, "static": False},
    }


@given(st.text())
def test_any_listing_is_survived(listing: str) -> None:
    parse_installed(listing)
    wanted("pcre").compare(listing)


@pytest.mark.parametrize("name", ["tree", "--sync", "a b/c", "app-text/$(reboot)", "", "x/y\n"])
def test_a_name_that_emerge_could_misread_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="a package's name must be"):
        Portage(SITE).installed("app-text/tree", name)


def test_a_root_that_is_not_there_has_nothing() -> None:
    nowhere = HOST.inside("/nowhere")
    assert Portage(SITE).installed("app-text/tree").probe(nowhere) is not None
    assert Portage(SITE).updated().probe(nowhere) is not None


def test_every_domain_gets_the_same_settings() -> None:
    written = texts(SITE)
    assert list(written) == [
        "/etc/portage/make.conf",
        "/etc/portage/package.use/xenlab",
        "/etc/portage/package.accept_keywords/xenlab",
        "/etc/portage/repos.conf/xenlab.conf",
    ]
    # what a site no longer says does not stay in force
    assert "\n[" not in written["/etc/portage/repos.conf/xenlab.conf"]
    make = written["/etc/portage/make.conf"]
    assert 'COMMON_FLAGS="-O2 -pipe -march=x86-64"\n' in make
    assert 'USE="pcre -static"\n' in make
    assert "distcc" not in make and "MAKEOPTS" not in make
    use = written["/etc/portage/package.use/xenlab"]
    assert use.splitlines()[1:] == list(SITE.package_use)


def test_what_a_site_may_settle_beside_its_flags() -> None:
    rsync = "rsync://mirror.example.org/gentoo-portage"
    site = parameters.Portage(
        accept_keywords=["app-emulation/xen ~amd64", "sys-apps/less **"],
        distcc=["192.0.2.10", "helper.example.org:3633/8"],
        sync={"gentoo": rsync, "own": "https://example.org/own.git"},
    )
    written = texts(site)
    keywords = written["/etc/portage/package.accept_keywords/xenlab"]
    assert keywords.splitlines()[1:] == list(site.accept_keywords)
    hosts = written["/etc/distcc/hosts"]
    assert hosts.splitlines()[1:] == ["192.0.2.10:3632/4", "helper.example.org:3633/8"]
    assert 'MAKEOPTS="-j12"\n' in written["/etc/portage/make.conf"]
    assert 'FEATURES="${FEATURES} distcc' in written["/etc/portage/make.conf"]
    assert written["/etc/portage/repos.conf/xenlab.conf"].splitlines()[1:] == [
        "",
        *("[gentoo]", "location = /var/db/repos/gentoo"),
        *("sync-type = rsync", f"sync-uri = {rsync}"),
        "",
        *("[own]", "location = /var/db/repos/own"),
        *("sync-type = git", "sync-uri = https://example.org/own.git"),
    ]


def test_what_is_to_go_and_is_not_there_is_not_looked_for() -> None:
    assert Portage(SITE).removed(LESS).probe(HOST) is None
    assert Portage(SITE).removed().probe(HOST) is None
    for name in ("--depclean", "less"):
        with pytest.raises(BadInput, match="a package's name must be"):
            Portage(SITE).removed(name)
    with pytest.raises(
        BadInput, match="cannot remove net-fs/nfs-utils: because the chapters need it"
    ):
        Portage(SITE).removed(LESS, "net-fs/nfs-utils")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"unwanted": ["no/such"]}, r"unwanted\[0\] must be the name of a Debian package"),
        ({"unwanted": ["tcpdump"], "software": ["tcpdump"]}, "tcpdump is unwanted, and yet in"),
        ({"unwanted": ["tree"], "shared_packages": ["tree"]}, "tree is unwanted, and yet in"),
    ],
)
def test_what_is_unwanted_and_wanted_is_refused(site: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lab_site(**site)


def texts(site: parameters.Portage) -> dict[str, str]:
    files = (each for each in Portage(site).settled() if isinstance(each, File))
    return {file.path: file.text() for file in files}


def test_the_store_goes_to_the_share() -> None:
    assert Portage(SITE).store("/srv/all") == (
        Relocated("/var/db/repos", "/srv/all/portage/repos"),
        Relocated("/var/cache/distfiles", "/srv/all/portage/distfiles"),
        Relocated("/var/cache/binpkgs", "/srv/all/portage/binpkgs"),
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cflags", '-O2"; rm -rf /; "', "portage.cflags must be a compiler's flags"),
        ("cflags", "-O2 $(reboot)", "portage.cflags must be a compiler's flags"),
        ("use", ["pcre static"], r"portage.use\[0\] must be a USE flag"),
        ("package_use", ["less pcre"], r"portage.package_use\[0\] must be a package and its USE"),
        ("package_use", ["sys-apps/less"], r"portage.package_use\[0\] must be a package and its"),
        ("accept_keywords", ["sys-apps/less"], "must be a package and the keywords to accept"),
        ("accept_keywords", ["sys-apps/less $x"], "must be a package and the keywords to accept"),
        ("distcc", ["--help"], r"portage.distcc\[0\] must be a distcc server"),
        ("distcc", ["host:0"], r"portage.distcc\[0\] must be a distcc server"),
        ("distcc", ["host/8 other"], r"portage.distcc\[0\] must be a distcc server"),
        ("distcc", ["host:70000"], r"portage.distcc\[0\] names port 70000, and there are 65535"),
        *(
            ("sync", {"gentoo": uri}, "portage.sync.gentoo must be rsync://HOST/PATH or, for git")
            for uri in (
                "ftp://host/tree",
                "git://host/tree",
                "https://me:word@host/tree",
                "https://token@host/tree",
                "https://host/tree?token=abc",
                "https:///tree",
                "ssh://-oProxyCommand=x/tree",
                "rsync://host/a b",
            )
        ),
        ("sync", {"gen]too": "rsync://host/tree"}, "must be the name of a Portage repository"),
        ("sync", {"DEFAULT": "rsync://host/tree"}, "must be the name of a Portage repository"),
    ],
)
def test_settings_that_portage_could_misread_are_refused(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        lab_site(portage={key: value})


def test_flags_mean_nothing_to_debian() -> None:
    with pytest.raises(BadInput, match="only its cflags can be given on platform debian"):
        lab_site(portage={"use": ["pcre"]})
