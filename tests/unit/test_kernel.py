"""Kernels: the howto's lists as options, and builds on a real shell with a tree in miniature."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.cutshort import CutShort
from tests.smalldisk import disk_that_loses_its_power
from tests.ssh.conftest import processes_with, wait_until
from tests.unit.rootdir import root_with
from tests.watching import Watching

from xenlab import cache
from xenlab.cache import locked
from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, CommandTimeout, ConnectionLost, StepFailed
from xenlab.host import Host, Output
from xenlab.resources.archive import checksum_of
from xenlab.resources.kernel import (
    OWN_GROUP,
    KernelBuild,
    KernelBuilt,
    KernelConfigured,
    KernelInstalled,
    Option,
    Sources,
    fragment,
    honoured,
    options,
    parse_checksums,
    parse_config,
    parse_facts,
    parse_fragment,
)
from xenlab.transport.local import Local

LIB = Path(__file__).parents[2] / "lib"
RECORDED = Path(__file__).parents[1] / "recorded"
FLAVOURS = ["dom0", "domU"]


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


# -- options


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_option_stands_for_a_statement_and_is_named_once(flavour: str) -> None:
    found = options(flavour)
    assert all(option.statement for option in found)
    symbols = [option.symbol for option in found]
    assert len(symbols) == len(set(symbols))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("linux", cache.LINUX.values())
def test_a_real_config_honours_every_option(flavour: str, linux: str) -> None:
    """For each release's sources: the same list, but for what the other does not know."""
    asked = options(flavour, archive=f"/x/linux-source-{linux}.tar.xz")
    config = parse_config((RECORDED / f"kernel-{flavour.lower()}-{linux}.config").read_text())
    assert [row for row in honoured(asked, config) if row["ok"] == "no"] == []


@pytest.mark.parametrize(
    ("archive", "old"),
    [
        *(("/usr/src/linux-source-6.1.tar.xz", True), ("~/linux-6.9.3.tar.gz", True)),
        *(("linux-2.6.16-xen.tar.bz2", True), ("linux-source-6.12.tar.xz", False)),
        *(("linux-6.10.tar.xz", False), ("linux-10.0.tar.xz", False), ("linux.tar", False)),
    ],
)
def test_the_name_of_the_sources_says_whether_an_option_is_asked_for(
    archive: str, old: bool
) -> None:
    assert old == any(option.symbol == "BASE_FULL" for option in options("domU", archive=archive))


def test_the_two_kernels_are_mirror_images() -> None:
    wanted = {
        flavour: {option.symbol: option.wanted for option in options(flavour)}
        for flavour in FLAVOURS
    }
    for symbol in ("XEN_DOM0", "XEN_BACKEND"):
        assert wanted["dom0"][symbol] == "y"
        assert wanted["domU"][symbol] == "n"
    for symbol in ("XEN_BLKDEV_FRONTEND", "XEN_NETDEV_FRONTEND", "XEN_PCIDEV_FRONTEND"):
        assert wanted["domU"][symbol] == "y"
    assert wanted["dom0"]["LOCALVERSION"] == '"-xen0"'
    assert wanted["domU"]["LOCALVERSION"] == '"-domU"'


def test_an_option_that_kconfig_dropped_is_seen() -> None:
    text = (RECORDED / "kernel-dom0-6.12.config").read_text()
    config = parse_config(text.replace("CONFIG_BRIDGE=y", "# CONFIG_BRIDGE is not set"))
    lost = [row for row in honoured(options("dom0"), config) if row["ok"] == "no"]
    assert lost == [
        {
            "howto": "„Support für Ethernet Bridging“ (“support for Ethernet bridging”)",
            "symbol": "BRIDGE",
            "wanted": "y",
            "found": "n",
            "ok": "no",
        }
    ]


def test_an_option_that_must_be_off_and_is_on_is_seen() -> None:
    config = parse_config("CONFIG_PCI=y\n")
    assert honoured([Option("", "PCI", "n")], config)[0]["ok"] == "no"


def test_a_site_s_own_option_wins() -> None:
    found = {o.symbol: o for o in options("dom0", ["CONFIG_VT=n", "CONFIG_NVME_CORE=y"])}
    assert found["VT"] == Option(OWN_GROUP, "VT", "n")
    assert found["VT"].line == "# CONFIG_VT is not set"
    assert found["NVME_CORE"].line == "CONFIG_NVME_CORE=y"


def test_a_line_that_is_no_option_is_refused() -> None:
    with pytest.raises(BadInput, match="line 2"):
        parse_fragment("CONFIG_PCI=y\nPCI=y\n")


symbols = st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True)
values = st.one_of(
    st.sampled_from(["y", "n"]),
    st.integers().map(str),
    st.from_regex(r'"[ -!#-\[\]-~]*"', fullmatch=True),
)


@given(st.dictionaries(symbols, values))
def test_what_is_asked_for_is_what_is_read(wanted: dict[str, str]) -> None:
    asked = [Option("", symbol, value) for symbol, value in wanted.items()]
    text = fragment(asked)
    assert [(o.symbol, o.wanted) for o in parse_fragment(text)] == list(wanted.items())
    assert all(row["ok"] == "yes" for row in honoured(asked, parse_config(text)))


@given(st.text())
def test_any_text_can_be_read_as_a_config(text: str) -> None:
    assert all(value != "n" for value in parse_config(text).values())


def test_checksums_are_read() -> None:
    text = "aa  /boot/vmlinuz-6.1\nbb  /boot/with  blanks\n"
    assert parse_checksums(text) == {"/boot/vmlinuz-6.1": "aa", "/boot/with  blanks": "bb"}


def test_what_a_builder_answers_is_read() -> None:
    facts = parse_facts(
        f"{'a' * 64}\ngcc (Debian 12.2.0-14+deb12u1) 12.2.0\n\n"
        "key dom0-0123\nrelease 6.1.192-xen0\nvmlinuz abc\nkey domu-4567\nrelease 6.1.192-domU\n"
    )
    assert facts.archive == "a" * 64
    assert facts.compiler == "gcc (Debian 12.2.0-14+deb12u1) 12.2.0"
    assert facts.manifests["dom0-0123"] == {"release": "6.1.192-xen0", "vmlinuz": "abc"}
    assert facts.manifests["domu-4567"] == {"release": "6.1.192-domU"}


# -- builds: the real scripts, on a source tree that compiles one file


MAKEFILE = r"""
# A kernel tree in miniature: the targets that our scripts use, and files at the same places.
# As in the real one, objtool's record names the folder, and what objtool has seen depends on it.
image := $(O)/arch/x86/boot/bzImage
objects := $(O)/a.o $(O)/b.o $(O)/c.o
.PHONY: tinyconfig olddefconfig begun bzImage FORCE
tinyconfig:
	echo '# CONFIG_NOTHING is not set' > $(O)/.config
olddefconfig:
	grep -v DROPPED $(O)/.config > $(O)/.config.new; mv $(O)/.config.new $(O)/.config
begun:
	echo started >> $(O)/../../../started
	mkdir -p $(O)/arch/x86/boot $(O)/include/config $(O)/tools
	echo "CONFIG_CC_VERSION_TEXT=$$(gcc --version | head -n 1)" > $(O)/include/config/auto.conf
$(O)/tools/objtool: FORCE | begun
	@grep -qsF '$@' $(@D)/.objtool.cmd || { echo "cmd_$@" > $(@D)/.objtool.cmd; touch $@; }
$(objects): $(O)/tools/objtool
	@echo "  CC      $(@F)"; sleep $${SLOWNESS:-0.1}; { echo $(@F); cat $^; } > $@
$(O)/c.o: $(O)/.config
bzImage: $(objects)
	@! grep -q BROKEN $(O)/.config || { echo "a.c:1: no such thing"; exit 1; }
	echo 6.1.0-tiny > $(O)/include/config/kernel.release
	gcc -nostdlib -static -Wl,-e,0 -o $(O)/vmlinux notes.S
	cat $(objects) | sha256sum | sed "s/-/$$(date -d "$(KBUILD_BUILD_TIMESTAMP)" +%s)/" > $(image)
	cat $(O)/.config >> $(image)
	echo kernel/a.ko > $(O)/modules.builtin; touch $(O)/modules.builtin.modinfo
"""
MERGE = '#!/bin/sh\n[ "$1 $2" = "-m -O" ]\ncat "$5" >> "$4"\n'
EXTRACT = '#!/bin/sh\ntail -n +2 "$1"\n'
NOTE = """
.section .note.Xen{n}, "a", @note
.balign 4
.long 4, 4, {kind}
.asciz "Xen"
.long 0
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    tree = tmp_path / "pack" / "linux-tiny"
    (tree / "scripts" / "kconfig").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "Kconfig").write_text("")
    kinds = [1, 2, 3, 4, 5, 6, 7, 8, 9, 18]
    (tree / "notes.S").write_text("".join(NOTE.format(n=k, kind=k) for k in kinds))
    for name, text in (("kconfig/merge_config.sh", MERGE), ("extract-ikconfig", EXTRACT)):
        (tree / "scripts" / name).write_text(text)
        (tree / "scripts" / name).chmod(0o755)
    path = tmp_path / "linux-tiny.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        tar.add(tree, "linux-tiny")
    return path


@pytest.fixture
def host() -> Host:
    return Host(Local())


def kernel(archive: Path, flavour: str = "dom0", *own: str) -> KernelBuild:
    store = archive.parent / "store"
    return KernelBuild(flavour, str(archive), str(store / "source"), str(store), own)


def make(build: KernelBuild, host: Host) -> dict[str, str]:
    for resource in (unpacked(build), KernelConfigured(build), KernelBuilt(build)):
        if resource.probe(host) is not None:
            resource.apply(host, silent)
        resource.verify(host)
    manifest = build.manifest(host)
    assert manifest is not None
    return manifest


def unpacked(build: KernelBuild) -> Sources:
    return Sources(build, lambda: checksum_of(Path(build.archive)))


def sources_of(archive: Path) -> dict[str, str]:
    sums = archive.with_name("sums")
    sums.write_text(f"{checksum_of(archive)}  {archive.name}\n")
    return {"kernel_source": str(archive), "kernel_checksums": str(sums)}


def started(archive: Path) -> int:
    path = archive.parent / "store" / "started"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_kernel_is_unpacked_configured_and_compiled_once(archive: Path, host: Host) -> None:
    build = kernel(archive)
    manifest = make(build, host)
    assert manifest["release"] == "6.1.0-tiny"
    assert manifest["notes"] == "10"
    config = KernelConfigured(build).config(host)
    assert config is not None
    assert config["XEN_DOM0"] == "y"
    assert make(build, host) == manifest
    assert started(archive) == 1


def test_the_same_inputs_give_the_same_image(archive: Path, host: Host) -> None:
    first = make(kernel(archive), host)
    elsewhere = replace(kernel(archive), store=str(archive.parent / "other"))
    assert make(elsewhere, host)["vmlinuz"] == first["vmlinuz"]


def test_the_same_sources_are_the_same_kernel_whatever_the_time_of_their_archive(
    archive: Path, host: Host
) -> None:
    first = make(kernel(archive), host)
    os.utime(archive, (1, 1))
    assert make(kernel(archive), host) == first
    assert started(archive) == 1


def test_sources_of_the_same_size_and_time_are_another_kernel(archive: Path, host: Host) -> None:
    build, before = kernel(archive), archive.stat()
    make(build, host)
    with archive.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert archive.stat().st_size == before.st_size
    assert unpacked(build).probe(host) is not None
    assert build.manifest(host) is None


@pytest.mark.parametrize("digits", [64, 128])
def test_sources_with_another_checksum_are_not_unpacked(
    archive: Path, host: Host, digits: int
) -> None:
    build = kernel(archive)
    with pytest.raises(StepFailed, match="has another checksum"):
        Sources(build, lambda: "a" * digits).apply(host, silent)
    assert unpacked(build).probe(host) is not None
    right = checksum_of(archive, "0" * digits)
    Sources(build, lambda: right).apply(host, silent)
    assert unpacked(build).probe(host) is None


def test_sources_and_a_kernel_are_whole_after_a_power_cut(
    archive: Path, host: Host, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    build = replace(kernel(archive), trees=f"{disk}/trees", store=f"{disk}/store")
    with disk_that_loses_its_power(disk) as cut:
        make(build, host)
        after = cut()
        facts = build.require(host)
        for folder in (build.tree(facts), build.result(facts), f"{build.work(facts)}/out"):
            here, left = content(Path(folder)), content(after / Path(folder).relative_to(disk))
            assert here.keys() == left.keys()
            assert here == left


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_another_option_is_another_kernel(archive: Path, host: Host) -> None:
    make(kernel(archive), host)
    other = kernel(archive, "dom0", "CONFIG_IGB=y")
    assert KernelBuilt(other).probe(host) is not None
    make(other, host)
    assert started(archive) == 2
    assert KernelBuilt(kernel(archive)).probe(host) is None


def compiled(build: KernelBuild, host: Host) -> list[str]:
    log = Path(build.work(build.require(host)), "log").read_text()
    return sorted(line.split()[1] for line in log.splitlines() if line.startswith("  CC "))


def alone(archive: Path, host: Host) -> str:
    """The checksum of a guests' kernel that was built from nothing."""
    elsewhere = replace(kernel(archive, "domU"), store=str(archive.parent / "elsewhere" / "store"))
    found = make(elsewhere, host)["vmlinuz"]
    assert compiled(elsewhere, host) == ["a.o", "b.o", "c.o"]
    return found


@pytest.mark.parametrize("left", ["", "a copy that was killed"])
def test_the_guests_kernel_begins_with_what_dom0_s_has_compiled(
    archive: Path, host: Host, left: str
) -> None:
    make(kernel(archive), host)
    build = kernel(archive, "domU")
    if left:
        half = Path(build.work(build.require(host)), "out", "a.o")
        half.parent.mkdir(parents=True)
        half.write_text(left)
    assert make(build, host)["vmlinuz"] == alone(archive, host)
    assert compiled(build, host) == ["c.o"]


UNUSABLE = {
    "never built": 'rm -r "$1"',
    "being built, or killed": 'rm "$1/status"',
    "failed": 'echo "dom0-0123456789abcdef 2" > "$1/status"',
    "by another compiler": 'sed -i s/gcc/clang/ "$1/out/include/config/auto.conf"',
    "damaged": 'rm -r "$1/out/include"',
}


@pytest.mark.parametrize("state", UNUSABLE)
def test_what_dom0_s_has_compiled_is_not_used_unless_it_is_whole(
    archive: Path, host: Host, state: str
) -> None:
    make(kernel(archive), host)
    build = kernel(archive, "domU")
    host.run(Command.script(UNUSABLE[state], build.first(build.require(host))))
    assert make(build, host)["vmlinuz"] == alone(archive, host)
    assert compiled(build, host) == ["a.o", "b.o", "c.o"]


def test_what_dom0_s_has_compiled_is_not_used_while_somebody_builds_there(
    archive: Path, host: Host
) -> None:
    make(kernel(archive), host)
    build = kernel(archive, "domU")
    with locked(Path(build.first(build.require(host)), "lock")):
        make(build, host)
    assert compiled(build, host) == ["a.o", "b.o", "c.o"]


def test_what_was_compiled_from_other_sources_is_not_used(archive: Path, host: Host) -> None:
    make(kernel(archive), host)
    with archive.open("ab") as file:
        file.write(b"\0" * 4)
    build = kernel(archive, "domU")
    make(build, host)
    assert compiled(build, host) == ["a.o", "b.o", "c.o"]


def test_an_option_that_is_dropped_fails_with_its_name(archive: Path, host: Host) -> None:
    build = kernel(archive, "dom0", "CONFIG_DROPPED=y")
    unpacked(build).apply(host, silent)
    configured = KernelConfigured(build)
    configured.apply(host, silent)
    with pytest.raises(StepFailed, match="does not honour DROPPED=y") as failed:
        configured.verify(host)
    assert "what it depends on" in failed.value.hint


@pytest.mark.parametrize("arrived", [0, 25, -1])
def test_no_kernel_is_made_of_what_did_not_arrive_whole(
    archive: Path, host: Host, arrived: int
) -> None:
    build = kernel(archive)
    unpacked(build).apply(host, silent)
    short = Host(CutShort(arrived))
    configured, built = KernelConfigured(build), KernelBuilt(build)
    with pytest.raises(CommandFailed, match="not all of .* has arrived"):
        configured.apply(short, silent)
    assert configured.config(host) is None
    configured.apply(host, silent)
    with pytest.raises(CommandFailed, match="not all of .* has arrived"):
        built.apply(short, silent)
    assert started(archive) == 0
    built.apply(host, silent)
    built.verify(host)


def test_a_build_that_fails_says_why_and_leaves_no_kernel(archive: Path, host: Host) -> None:
    build = kernel(archive, "dom0", "CONFIG_BROKEN=y")
    with pytest.raises(StepFailed, match=r"a\.c:1: no such thing"):
        make(build, host)
    assert build.manifest(host) is None


def test_two_that_ask_at_once_get_one_build(archive: Path, host: Host) -> None:
    build = kernel(archive)
    unpacked(build).apply(host, silent)
    KernelConfigured(build).apply(host, silent)
    threads = [
        threading.Thread(target=KernelBuilt(build).apply, args=(host, silent)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert build.manifest(host) is not None
    assert started(archive) == 1


def test_a_lost_connection_finds_its_build_again(archive: Path) -> None:
    class Lossy(Local):
        """Loses the first connection that has brought a line of the build."""

        lost = False

        def execute(
            self,
            text: str,
            *,
            input: bytes = b"",
            timeout: float,
            on_output: Output | None = None,
            stop: threading.Event | None = None,
            mark: str = "",
            look: bool = False,
        ) -> tuple[int, bytes, bytes]:
            def seen(stream: str, piece: bytes) -> None:
                if on_output is not None:
                    on_output(stream, piece)
                if b"  CC  " in piece and not self.lost:
                    self.lost = True
                    raise ConnectionLost("the cable was pulled", where=self.name)

            return super().execute(
                text, input=input, timeout=timeout, on_output=seen, stop=stop, mark=mark
            )

    transport = Lossy()
    host = Host(transport)
    said: list[tuple[str, float | None]] = []
    build = kernel(archive)
    unpacked(build).apply(host, silent)
    KernelConfigured(build).apply(host, silent)
    KernelBuilt(build).apply(host, lambda what, done=None: said.append((what, done)))
    assert transport.lost
    assert build.manifest(host) is not None
    assert started(archive) == 1
    assert any("lost" in what for what, _ in said)
    assert any(done for _, done in said)


def test_a_build_whose_follower_was_killed_goes_on(
    archive: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOWNESS", "1")
    build = kernel(archive)
    unpacked(build).apply(host, silent)
    KernelConfigured(build).apply(host, silent)
    program = (
        "import sys\n"
        "from xenlab.host import Host\n"
        "from xenlab.transport.local import Local\n"
        "from xenlab.resources.kernel import KernelBuild, KernelBuilt\n"
        "build = KernelBuild('dom0', *sys.argv[1:])\n"
        "KernelBuilt(build).apply(Host(Local()), lambda what, done=None: None)\n"
    )
    words = ["-c", program, build.archive, build.trees, build.store]
    environment = {**os.environ, "PYTHONPATH": str(LIB)}
    follower = subprocess.Popen([sys.executable, *words], env=environment, start_new_session=True)
    deadline = time.monotonic() + 30
    while not started(archive) and time.monotonic() < deadline:
        time.sleep(0.05)
    follower.send_signal(signal.SIGKILL)
    follower.wait()
    KernelBuilt(build).apply(host, silent)
    assert build.manifest(host) is not None
    assert started(archive) == 1


def test_a_stopped_step_ends_its_build(
    archive: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOWNESS", "30")
    build = kernel(archive)
    unpacked(build).apply(host, silent)
    KernelConfigured(build).apply(host, silent)
    stop = threading.Event()
    marked = host.watched(Watching(stop, mark=f"test/{archive}"))

    def report(what: str, done: float | None = None) -> None:
        stop.set()

    with pytest.raises(KeyboardInterrupt):
        KernelBuilt(build).apply(marked, report)
    assert not host.has_marked(f"test/{archive}")
    assert build.manifest(host) is None
    monkeypatch.setenv("SLOWNESS", "0")
    KernelBuilt(build).apply(host, silent)
    KernelBuilt(build).verify(host)


def test_kernels_compiled_ahead_end_with_the_command_that_compiles_them(
    archive: Path, tmp_path: Path
) -> None:
    site = yaml.safe_load((LIB.parent / "parameters" / "lab.yaml").read_text())
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(site | sources_of(archive)))
    cache = {"XENLAB_CACHE": str(tmp_path / "cache"), "SLOWNESS": "1234"}
    ahead = subprocess.Popen(
        [sys.executable, "-m", "xenlab", "lab", "kernels", "-f", str(file)],
        env={**os.environ, **cache, "PYTHONPATH": str(LIB)},
        stdin=subprocess.DEVNULL,
        # what is started in the background of a script may have to ignore it
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
    )
    begun = tmp_path / "cache" / "kernel" / "started"
    wait_until(lambda: begun.exists() or ahead.poll() is not None, 120)
    ahead.terminate()
    assert ahead.wait(120) == 128 + signal.SIGTERM
    assert processes_with(f"XENLAB_CACHE={cache['XENLAB_CACHE']}") == []


def test_who_configures_what_is_compiled_already_does_not_wait_for_its_end(
    archive: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = kernel(archive)
    unpacked(build).apply(host, silent)
    configured = KernelConfigured(build)
    configured.apply(host, silent)
    monkeypatch.setattr("xenlab.resources.kernel.CONFIGURE_SECONDS", 3.0)
    with Path(build.work(build.require(host)), "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configured.apply(host, silent)
        # another kernel in the same folder has no config before its turn
        other = KernelConfigured(kernel(archive, "dom0", "CONFIG_MORE=y"))
        with pytest.raises(CommandTimeout):
            other.apply(host, silent)
    assert other.config(host) is None
    other.apply(host, silent)
    other.verify(host)


def test_a_missing_archive_is_said_before_anything_is_done(tmp_path: Path, host: Host) -> None:
    build = KernelBuild("dom0", str(tmp_path / "none.tar.xz"), str(tmp_path), str(tmp_path))
    assert unpacked(build).probe(host) is not None
    assert KernelBuilt(build).probe(host) is not None
    with pytest.raises(StepFailed, match="no kernel source archive"):
        unpacked(build).apply(host, silent)


def test_a_folder_that_make_cannot_build_in_is_refused(archive: Path, host: Host) -> None:
    build = replace(kernel(archive), store=f"{archive.parent}/with blank")
    with pytest.raises(BadInput, match="blank"):
        KernelConfigured(build).apply(host, silent)


# -- installing, into a root directory (chroot)


@pytest.fixture
def target(tmp_path: Path) -> Host:
    """A root directory with the programs that installing uses, seen from inside."""
    programs = ["mkdir", "cp", "mv", "chmod", "cmp", "sha256sum", "sync", "depmod", "stat"]
    host = root_with(tmp_path / "root", *programs)
    on_target(host, "/boot").mkdir()
    on_target(host, "/lib/modules").mkdir(parents=True)
    return host


def on_target(target: Host, path: str) -> Path:
    return Path(target.path(path))


def install(build: KernelBuild, builder: Host, target: Host) -> KernelInstalled:
    make(build, builder)
    resource = KernelInstalled(build, builder)
    assert resource.probe(target) is not None
    resource.apply(target, silent)
    resource.verify(target)
    assert resource.probe(target) is None
    return resource


def test_dom0_s_kernel_is_installed_with_its_config(
    archive: Path, host: Host, target: Host
) -> None:
    build = kernel(archive)
    install(build, host, target)
    config = on_target(target, "/boot/config-6.1.0-tiny").read_text()
    assert "CONFIG_XEN_DOM0=y" in config
    assert on_target(target, "/boot/vmlinuz-6.1.0-tiny").stat().st_mode & 0o777 == 0o644
    assert on_target(target, "/lib/modules/6.1.0-tiny/modules.builtin.bin").exists()
    assert sorted(p.name for p in on_target(target, "/boot").iterdir()) == [
        "config-6.1.0-tiny",
        "vmlinuz-6.1.0-tiny",
    ]


def test_the_guests_kernel_keeps_the_one_before_and_leaves_dom0_s_alone(
    archive: Path, host: Host, target: Host
) -> None:
    install(kernel(archive), host, target)
    before = on_target(target, "/boot/vmlinuz-6.1.0-tiny").read_bytes()
    install(kernel(archive, "domU"), host, target)
    place = on_target(target, "/xenboot")
    assert sorted(p.name for p in place.iterdir()) == ["config-domU", "vmlinuz-domU"]
    first = (place / "vmlinuz-domU").read_bytes()
    install(kernel(archive, "domU", "CONFIG_MORE=y"), host, target)
    assert (place / "vmlinuz-domU.old").read_bytes() == first
    assert (place / "vmlinuz-domU").read_bytes() != first
    assert (place / "config-domU.old").exists()
    assert on_target(target, "/boot/vmlinuz-6.1.0-tiny").read_bytes() == before
    assert not list(on_target(target, "/boot").glob("*domU*"))


def test_the_same_kernel_again_makes_no_old_one(archive: Path, host: Host, target: Host) -> None:
    resource = install(kernel(archive, "domU"), host, target)
    on_target(target, "/xenboot/config-domU").unlink()
    resource.apply(target, silent)
    resource.verify(target)
    assert not list(on_target(target, "/xenboot").glob("*.old"))


def test_a_copy_that_differs_is_seen(archive: Path, host: Host, target: Host) -> None:
    resource = install(kernel(archive), host, target)
    on_target(target, "/boot/vmlinuz-6.1.0-tiny").write_text("something else")
    difference = resource.probe(target)
    assert difference is not None
    assert [row["file"] for row in difference.rows] == ["/boot/vmlinuz-6.1.0-tiny"]


def test_a_root_that_is_not_there_yet_is_a_difference(
    archive: Path, host: Host, tmp_path: Path
) -> None:
    make(kernel(archive), host)
    empty = host.inside(str(tmp_path / "nowhere"))
    assert KernelInstalled(kernel(archive), host).probe(empty) is not None


def test_nothing_is_installed_before_it_is_compiled(archive: Path, host: Host) -> None:
    resource = KernelInstalled(kernel(archive), host)
    difference = resource.probe(host)
    assert difference is not None
    assert "once it is compiled" in difference.summary
    with pytest.raises(StepFailed, match="not compiled yet"):
        resource.apply(host, silent)
