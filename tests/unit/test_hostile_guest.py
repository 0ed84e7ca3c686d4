"""A guest that lays traps in its own root: dom0 works there, and nothing of dom0 changes or leaks.

Each trap is at every path that a chapter reads or writes in a guest, in both layouts of /usr.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.test_guest import SETTINGS

from xenlab.errors import StepFailed, XenlabError
from xenlab.host import Host
from xenlab.platform.interfaces import DebianGuest, GentooGuest
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.guest import GuestConfigured, GuestFile, GuestRoot
from xenlab.resources.shared_usr import Needed, UsrLinked, UsrSwapped, in_usr
from xenlab.transport.local import Local

LIB = Path(__file__).parents[2] / "lib/xenlab"
HOST = Host(Local())
NAME = f"trapped-{os.getpid()}"
SECRET = "dom0 alone knows this 5f1c2a"
NEEDED = [
    "/usr/bin/find",
    "/usr/lib/deep/libfind.so.1.2",
    "/usr/sbin/early",
]
FILES = {
    "merged": DebianGuest().files(SETTINGS),
    "split": GentooGuest().files(SETTINGS),
}
# Whatever a chapter names in a guest's root; the folders above these are tried one by one.
NAMED = [
    *("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub"),
    *("/etc/ssh/ssh_host_rsa_key", "/etc/xenlab-generation", "/etc/inittab", "/sbin/poweroff"),
]
OF_LAYOUT = {
    "merged": ["/.xenlab/init", "/.xenlab/busybox", "/.xenlab/sub/x", "/etc/init"],
    "split": [*NEEDED, *(path.removeprefix("/usr") for path in NEEDED), "/usr/bin/gfind"],
}
FOLDERS = {
    "merged": ["/.xenlab", "/usr", "/usr.old"],
    "split": [
        *("/usr", "/usr.old", "/usr/bin", "/usr/lib", "/usr/lib/deep", "/bin", "/lib"),
        *("/lib/deep", "/sbin", "/usr/sbin"),
    ],
}
IN_ETC = [
    *("/etc", "/etc/ssh", "/etc/network", "/etc/systemd", "/etc/systemd/system", "/etc/conf.d"),
    "/etc/systemd/system.conf.d",
]

Trap = Callable[[Path, Path], None]


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


class Down(Resource):
    """A guest that runs until it is told to stop."""

    running = True

    def probe(self, host: Host) -> Difference | None:
        return Difference("shut it down") if self.running else None

    def apply(self, host: Host, report: Report) -> None:
        self.running = False


def absolute(place: Path, target: Path) -> None:
    """A link that names dom0's file."""
    place.symlink_to(target)


def relative(place: Path, target: Path) -> None:
    """A link that climbs out of any root."""
    place.symlink_to("../" * 40 + str(target).lstrip("/"))


def nowhere(place: Path, target: Path) -> None:
    """A link to a name that dom0 does not have yet, where a file of the guest would be read."""
    place.symlink_to(target.parent / f"{target.name}-evil-{place.name}")


def pipe(place: Path, target: Path) -> None:
    """A pipe: who opens it waits for ever."""
    os.mkfifo(place)


def node(place: Path, target: Path) -> None:
    """A device node of dom0's: reading this one never ends."""
    os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def full_folder(place: Path, target: Path) -> None:
    """A folder with something in it, where a file belongs."""
    place.mkdir()
    (place / "x").symlink_to(target)


TRAPS = {trap.__name__: trap for trap in (absolute, relative, nowhere, pipe, node, full_folder)}


IN_FOLDERS = ("absolute", "relative", "pipe")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A guest's disk and dom0's records of it for each layout, made by chapter 09."""
    return {name: _made(tmp_path_factory.mktemp(name), name == "split") for name in FILES}


def _made(folder: Path, split: bool) -> Path:
    root = folder / "image"
    for name in ("etc/ssh", "etc/conf.d", "usr/bin", "usr/sbin", "usr/lib/deep", "dev"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        if split:
            (root / name).mkdir()
        else:
            (root / name).symlink_to(f"usr/{name}")
    (root / "sbin/poweroff").symlink_to("/bin/systemctl")
    (root / "etc/inittab").write_text("1:2345:respawn:/sbin/getty 38400 tty1\n")
    (root / "usr/sbin/early").write_text("starts\n")
    (root / "usr/bin/gfind").write_text("finds\n")
    (root / "usr/bin/find").symlink_to("/etc/alternatives/find")
    (root / "etc/alternatives").mkdir()
    (root / "etc/alternatives/find").symlink_to("/usr/bin/gfind")
    (root / "usr/lib/deep/libfind.so.1.2").write_text("library\n")
    (root / "usr/lib/deep/libfind.so.1").symlink_to("libfind.so.1.2")
    image = folder / "base.tar.zst"
    run("tar", "-C", root, "--zstd", "-cf", image, ".")
    Path(f"{image}.sha256").write_text(run("sha256sum", image) + "\n")
    disk = folder / "disk.img"
    with disk.open("wb") as out:
        out.truncate(32 << 20)
    run("mkfs.ext4", "-q", "-F", disk)
    with attached(disk) as device:
        GuestRoot(NAME, device, str(image), "domu1", records=str(folder / "records")).apply(
            HOST, silent
        )
    return folder


@contextmanager
def attached(disk: Path) -> Iterator[str]:
    """A disk's file as a block device."""
    device = run("losetup", "--find", "--show", disk)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(device: str, folder: Path) -> Iterator[Path]:
    """The guest's root, as the guest sees it."""
    place = folder / "as the guest"
    place.mkdir(exist_ok=True)
    run("mount", device, place)
    try:
        yield place
    finally:
        run("umount", place)


class Scene:
    """A guest's disk, dom0 around it, and what both chapters do."""

    def __init__(self, folder: Path, template: Path, layout: str, device: str) -> None:
        self.folder, self.layout, self.device = folder, layout, device
        self.records = folder / "records"
        shutil.copytree(template / "records", self.records)
        self.dom0 = folder / "dom0"
        (self.dom0 / "etc/cron.d").mkdir(parents=True)
        for name in ("etc/shadow", "etc/cron.d/job", "init", "early", "find", "libfind.so.1.2"):
            (self.dom0 / name).write_text(f"{SECRET}\n")
            (self.dom0 / name).chmod(0o640)
        self.busybox = folder / "busybox"
        self.busybox.write_text("static\n")

    def files(self) -> tuple[GuestFile, ...]:
        return FILES[self.layout]

    def chapter_09(self) -> Resource:
        return GuestConfigured(NAME, self.device, self.files(), records=str(self.records))

    def chapter_15(self, needed: list[str] | None = None) -> Resource:
        if self.layout == "merged":
            return UsrSwapped(
                NAME, self.device, True, busybox=str(self.busybox), records=str(self.records)
            )
        wanted = NEEDED if needed is None else needed
        return UsrLinked(
            *(NAME, self.device, "/mnt/share/usr/0", lambda: wanted, Down()),
            records=str(self.records),
        )

    def back(self) -> Resource:
        return UsrSwapped(NAME, self.device, False, records=str(self.records))

    def by_runbook(self, resource: Resource) -> subprocess.CompletedProcess[str]:
        """Run what a script has of a resource, with this folder in the place of /mnt."""
        text = "\n".join(command.in_script() for command in resource.commands())
        text = text.replace(f"/mnt/{NAME}", f"{self.folder}/by-hand")
        ended = subprocess.run(["sh", "-eu"], input=text, capture_output=True, text=True)
        left = subprocess.run(["umount", f"{self.folder}/by-hand"], capture_output=True)
        assert left.returncode != 0, "nothing stays mounted"
        return ended

    def plant(self, trap: Trap, path: str, target: str = "etc/shadow") -> bool:
        """Put a trap at a path, as the guest's root can; whether there is a folder for it."""
        with mounted(self.device, self.folder) as root:
            return self._plant(root, trap, path, target)

    def plant_all(self, trap: Trap, paths: list[str]) -> None:
        with mounted(self.device, self.folder) as root:
            for path in paths:
                (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                assert self._plant(root, trap, path, "etc/shadow")

    def _plant(self, root: Path, trap: Trap, path: str, target: str) -> bool:
        place = root / path.lstrip("/")
        if not place.parent.is_dir():
            return False
        if place.is_dir() and not place.is_symlink():
            place.rename(place.with_name(f"{place.name}-moved"))
        place.unlink(missing_ok=True)
        trap(place, self.dom0 / target)
        return True

    def state(self) -> dict[str, str]:
        """All of dom0: names, kinds, modes, owners, times of change, content."""
        found = {}
        for path in sorted((self.dom0, *self.dom0.rglob("*"), self.busybox)):
            seen = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (
                f"{seen.st_mode:o} {seen.st_uid}:{seen.st_gid} {seen.st_mtime_ns} "
                f"{seen.st_ctime_ns} {hashlib.sha256(content).hexdigest()}"
            )
        return found

    def leaked(self) -> bool:
        """Whether anything on the guest's disk holds dom0's secret."""
        # nobody has it mounted: what the kernel still holds back of it goes into the file
        run("blockdev", "--flushbufs", self.device)
        return SECRET.encode() in (self.folder / "disk.img").read_bytes()

    def work(self, *resources: Resource) -> list[str]:
        """Do what the chapters do, and what was refused; dom0 is as before, and kept its secret."""
        before, refused = self.state(), []
        for resource in resources:
            try:
                resource.apply(HOST, silent)
            except StepFailed as error:
                refused.append(error.message)
        assert self.state() == before
        assert not self.leaked()
        return refused


@contextmanager
def scene(layout: str, templates: dict[str, Path], folder: Path) -> Iterator[Scene]:
    shutil.copy(templates[layout] / "disk.img", folder / "disk.img")
    with attached(folder / "disk.img") as device:
        yield Scene(folder, templates[layout], layout, device)


@pytest.fixture(params=sorted(FILES))
def guest(
    request: pytest.FixtureRequest, templates: dict[str, Path], tmp_path: Path
) -> Iterator[Scene]:
    """A guest of either layout, that ran once and comes from chapter 09."""
    with scene(request.param, templates, tmp_path) as made:
        yield made


@pytest.mark.parametrize("name", ["absolute", "relative", "nowhere", "pipe", "node"])
def test_a_trap_at_every_name_is_replaced_or_refused(guest: Scene, name: str) -> None:
    """What dom0 writes takes the trap's place; only what it must read is refused."""
    trap = TRAPS[name]
    ours = [file.path for file in guest.files()]
    guest.plant_all(trap, [*NAMED, *ours])
    refused = guest.work(guest.chapter_09())
    if name in ("pipe", "node") and guest.layout == "split":
        assert len(refused) == 1 and "/etc/inittab" in refused[0]
    else:
        assert refused == []
    guest.plant_all(trap, OF_LAYOUT[guest.layout])
    refused = guest.work(guest.chapter_15())
    if guest.layout == "split" and name in ("pipe", "node"):
        # what stands in /bin already stays there, whatever it is
        assert refused == [] or refused[0].startswith("cannot bring /usr/")
    else:
        assert refused == []
    guest.work(guest.back())


@pytest.mark.parametrize("name", IN_FOLDERS)
@pytest.mark.parametrize("number", range(len(FOLDERS["split"])))
def test_a_trap_in_the_place_of_a_folder_leads_nowhere(
    templates: dict[str, Path], tmp_path: Path, name: str, number: int
) -> None:
    trap = TRAPS[name]
    for layout, folders in FOLDERS.items():
        if number >= len(folders):
            continue
        folder = tmp_path / layout
        folder.mkdir()
        with scene(layout, templates, folder) as guest:
            target = "etc/cron.d" if number % 2 else "etc"
            if guest.plant(trap, folders[number], target):
                guest.work(guest.chapter_15(), guest.back(), guest.chapter_09())


@pytest.mark.parametrize("path", IN_ETC)
@pytest.mark.parametrize("name", IN_FOLDERS)
def test_a_trap_in_the_place_of_a_folder_of_etc_leads_nowhere(
    guest: Scene, name: str, path: str
) -> None:
    if guest.plant(TRAPS[name], path, "etc"):
        guest.work(guest.chapter_09())


def test_a_folder_of_traps_set_aside_leads_nowhere(guest: Scene) -> None:
    """A run that was cut off: what is in /usr.old now may be anything, too."""
    chapter = guest.chapter_15()
    assert guest.work(chapter) == []
    with mounted(guest.device, guest.folder) as root:
        for path in ("bin/find", "sbin/early", "lib/deep/libfind.so.1.2"):
            place = root / "usr.old" / path
            place.unlink(missing_ok=True)
            place.symlink_to(guest.dom0 / "etc/shadow")
            copy = root / path
            copy.unlink(missing_ok=True)
    (guest.records / NAME / "usr").write_text("swapping\n")
    guest.work(chapter, guest.back())


def test_what_a_boot_needs_is_found_through_the_guest_s_own_links(
    templates: dict[str, Path], tmp_path: Path
) -> None:
    """/usr/bin/find is a link to /etc/alternatives, and this one to /usr again."""
    with scene("split", templates, tmp_path) as guest:
        assert guest.work(guest.chapter_15()) == []
        with mounted(guest.device, tmp_path) as root:
            assert (root / "bin/find").read_text() == "finds\n"
            assert (root / "lib/deep/libfind.so.1").read_text() == "library\n"


@pytest.mark.parametrize(
    "path",
    [
        "/usr/../../etc/cron.d/evil",
        "/usr/..",
        "/usr/bin/../../etc/shadow",
        "/usr/x\n/etc/shadow",
        "/usr/\x1b]52;c;x\a",
        "/usrlocal/x",
        "/usr",
    ],
)
def test_a_path_that_leads_out_of_usr_is_refused(
    templates: dict[str, Path], tmp_path: Path, path: str
) -> None:
    with scene("split", templates, tmp_path) as guest:
        refused = guest.work(guest.chapter_15([*NEEDED, path]))
        assert len(refused) == 1 and "is no path in /usr" in refused[0]
        with mounted(guest.device, tmp_path) as root:
            assert (root / "usr/bin").is_dir() and not (root / "usr.old").exists()


def test_what_a_guest_reports_in_another_spelling_is_the_same_path() -> None:
    needed = [Needed("a", "/usr//sbin/./early", "/usr/sbin/early"), Needed("b", "/bin/x", "/bin/x")]
    assert in_usr(needed) == ["/usr//sbin/./early"]


def test_a_file_system_that_a_guest_emptied_is_not_taken_for_a_new_one(
    templates: dict[str, Path], tmp_path: Path
) -> None:
    """All but lost+found, which leads into dom0."""
    with scene("merged", templates, tmp_path) as guest:
        with mounted(guest.device, tmp_path) as root:
            for place in root.iterdir():
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()
            (root / "lost+found").symlink_to(guest.dom0)
        image = templates["merged"] / "base.tar.zst"
        (guest.records / NAME / "root").unlink()
        made = GuestRoot(NAME, guest.device, str(image), "domu1", records=str(guest.records))
        refused = guest.work(made)
        assert refused and "nobody agreed to lose" in refused[0]
        assert [one.name for one in made.destroys(HOST)] == ["domu1"], "and somebody can"


@pytest.mark.parametrize("kind", ["xfs", "vfat"])
def test_only_ext4_is_mounted(templates: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Whatever a guest makes of its partition, it does not choose dom0's file system driver."""
    with scene("merged", templates, tmp_path) as guest:
        head = {"xfs": (0, b"XFSB"), "vfat": (0x36, b"FAT16   ")}[kind]
        disk = (tmp_path / "disk.img").open("r+b")
        with disk:
            disk.seek(1024)
            disk.write(bytes(1024))
            disk.seek(head[0])
            disk.write(head[1])
        for resource in (guest.chapter_09(), guest.chapter_15()):
            with pytest.raises(XenlabError):
                resource.apply(HOST, silent)


def test_a_file_of_any_size_does_not_fill_dom0(templates: dict[str, Path], tmp_path: Path) -> None:
    with scene("split", templates, tmp_path) as guest:
        with mounted(guest.device, tmp_path) as root:
            os.truncate(root / "etc/inittab", 1 << 40)
        (refused,) = guest.work(guest.chapter_09())
        assert "cannot read /etc/inittab" in refused and "too large" in refused


def test_nothing_else_names_a_path_in_a_guest_s_root() -> None:
    """One module mounts guests' roots; one goes below them."""
    allowed = {LIB / "resources/guest.py", LIB / "resources/below.py"}
    for path in (*LIB.rglob("*.py"), *LIB.rglob("*.sh")):
        if path in allowed:
            continue
        text = path.read_text()
        assert "$mount/" not in text and "$scratch/root/" not in text, path
        assert 'mount -- "$device"' not in text, path
        assert "os.chroot" not in text, path
        # what is typed by hand, or stands in a runbook
        assert path.name == "shared_usr.py" or "/mnt/{" not in text, path


def test_a_runbook_swaps_usr_and_puts_it_back(templates: dict[str, Path], tmp_path: Path) -> None:
    with scene("merged", templates, tmp_path) as guest:
        assert guest.by_runbook(guest.chapter_15()).returncode == 0
        with mounted(guest.device, tmp_path) as root:
            assert (root / ".xenlab/busybox").read_text() == "static\n"
            assert (root / "usr.old/sbin/early").is_file() and not list((root / "usr").iterdir())
        assert guest.by_runbook(guest.back()).returncode == 0
        with mounted(guest.device, tmp_path) as root:
            assert (root / "usr/sbin/early").is_file() and not (root / ".xenlab").exists()


@pytest.mark.parametrize("name", ["etc", "etc/init", ".xenlab", "usr", "usr.old"])
def test_a_runbook_ends_where_the_guest_has_planted_a_link(
    templates: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for chapter in (Scene.chapter_15, Scene.back):
        folder = tmp_path / chapter.__name__
        folder.mkdir()
        with scene("merged", templates, folder) as guest:
            if chapter == Scene.back:
                assert guest.work(guest.chapter_15()) == []
                if name == "etc/init":
                    # a link that chapter 15 made, and that is only removed
                    continue
            assert guest.plant(absolute, f"/{name}", "etc/cron.d")
            before = guest.state()
            ended = guest.by_runbook(chapter(guest))
            assert ended.returncode == 1 and f"/{name} must be no link" in ended.stderr
            assert guest.state() == before and not guest.leaked()
