"""Genuine Portage in two root directories that share a store, as dom0 and a guest do (chroots)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.gentoo.roots import Roots, quiet

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.portage import Portage
from xenlab.resources.files import Relocated
from xenlab.site import schema as parameters

# the stage is built first, where it is not in the cache
pytestmark = pytest.mark.timeout(2400)

SHARE = "/mnt/share"
LESS, TREE = "sys-apps/less", "app-text/tree"
COMPILED = "Compiling/"


@dataclass
class Site:
    """A domain that builds, and one that has no compiler and reads the share only."""

    builder: Host
    client: Host

    def compiled(self) -> int:
        """How often the builder has compiled something."""
        return self.log(self.builder).count(COMPILED)

    def log(self, host: Host) -> str:
        """What a domain's Portage says it has done."""
        return host.read("/var/log/emerge.log") or ""


@pytest.fixture(scope="module")
def site(roots: Roots) -> Site:
    builder, client = roots.domain("builder"), roots.domain("client", "ro")
    client.run("rm -rf /usr/lib/gcc /usr/bin/*gcc* /usr/bin/*g++* /usr/bin/cc /usr/bin/c++")
    for resource in portage().store(SHARE):
        assert isinstance(resource, Relocated)
        resource.apply(builder, quiet)
        resource.verify(builder)
        link = Command.script('rm -r -- "$1"; ln -s "$2" "$1"', resource.path, resource.to)
        client.run(link)
    settle(builder, client)
    return Site(builder, client)


def portage(*package_use: str) -> Portage:
    return Portage(parameters.Portage(cflags="-O2 -pipe", package_use=list(package_use)))


def settle(*hosts: Host, use: tuple[str, ...] = ()) -> None:
    """The same settings in every domain."""
    for host in hosts:
        for resource in portage(*use).settled():
            if resource.probe(host) is not None:
                resource.apply(host, quiet)
            resource.verify(host)


def install(host: Host, *names: str, use: tuple[str, ...] = (), build: bool = True) -> bool:
    """Have packages installed; whether anything had to be done."""
    answer = portage(*use)
    resource = answer.installed(*names) if build else answer.from_store(*names)
    if resource.probe(host) is None:
        return False
    resource.apply(host, quiet)
    resource.verify(host)
    return True


def test_one_domain_compiles_the_other_takes_what_it_built(site: Site) -> None:
    before = site.compiled()
    assert install(site.builder, TREE, LESS)
    assert site.compiled() == before + 2
    assert not install(site.builder, TREE, LESS)
    assert not site.client.run("command -v gcc", check=False).ok
    assert install(site.client, TREE, LESS, build=False)
    assert COMPILED not in site.log(site.client)
    assert site.log(site.client).count("Merging Binary") == 2
    assert site.compiled() == before + 2
    shown = site.client.run("tree --noreport -L 1 /etc/portage").stdout
    assert "make.conf" in shown
    built = site.client.run("cat /var/db/pkg/app-text/tree-*/CFLAGS").stdout
    assert built == "-O2 -pipe\n"


def test_another_use_flag_is_another_package(site: Site) -> None:
    use = (f"{LESS} pcre",)
    install(site.builder, LESS)
    install(site.client, LESS, build=False)
    settle(site.builder, site.client, use=use)
    wanted = portage(*use).from_store(LESS)
    difference = wanted.probe(site.client)
    assert difference is not None
    assert difference.rows == ({"package": LESS, "found": "sys-apps/less-590 with USE -pcre"},)
    with pytest.raises(StepFailed, match=f"install {LESS}: because no binary package fits this"):
        wanted.apply(site.client, quiet)
    before = site.compiled()
    assert install(site.builder, LESS, use=use)
    assert not install(site.builder, LESS, use=use)
    assert site.compiled() == before + 1
    assert install(site.client, LESS, use=use, build=False)
    assert "libpcre2" in site.client.run("ldd /usr/bin/less").stdout
    assert COMPILED not in site.log(site.client)


def test_what_the_base_system_provides_is_not_built(site: Site) -> None:
    answer = portage()
    assert answer.hypervisor().probe(site.builder) is None
    needed = (*answer.nfs_client, *answer.nfs_server, *answer.static_shell, *answer.imaging)
    assert answer.installed(*needed).probe(site.builder) is None


def test_a_sync_on_one_machine_is_seen_by_all(site: Site) -> None:
    assert site.client.run("readlink -f /var/db/repos").stdout.startswith(SHARE)
    publish = """
        export HOME=/root GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t
        export GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
        git clone -q /var/lib/xenlab/repository.git /tmp/work
        cd /tmp/work/app-text/tree
        cp tree-2.1.0.ebuild tree-2.1.0-r1.ebuild
        git add .
        git commit -q -m "A new revision"
        git push -q origin main
    """
    site.builder.run(Command.script(publish))
    find = "ls /var/db/repos/xenlab/app-text/tree"
    assert "tree-2.1.0-r1.ebuild" not in site.client.run(find).stdout
    updated = portage().updated()
    site.builder.run("touch -d 2020-01-01 /mnt/share/portage/repos")
    difference = updated.probe(site.builder)
    assert difference is not None
    assert "emerge --sync" in difference.summary and "2020-01-01" in difference.summary
    updated.apply(site.builder, quiet)
    updated.verify(site.builder)
    assert "tree-2.1.0-r1.ebuild" in site.client.run(find).stdout
    assert updated.probe(site.client) is None


def test_a_source_that_somebody_changed_is_not_built(site: Site) -> None:
    name = "dash_0.5.12.orig.tar.gz"
    site.builder.run(Command.script('echo other > "/var/cache/distfiles/$1"', name))
    assert install(site.builder, "app-shells/dash")
    left = site.builder.run("ls /var/cache/distfiles").stdout
    assert f"{name}._checksum_failure_" in left
