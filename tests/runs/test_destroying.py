"""A disk's serial covers it once: what xenlab made of it is destroyed by name, or stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.sites import lab_site
from tests.ssh.conftest import Sshd

from xenlab.chapter import events
from xenlab.chapter.chapter import Chapter
from xenlab.chapters.disk import partitioned
from xenlab.errors import ConsentNeeded, StepFailed
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.disk import Filesystem, PartitionTable
from xenlab.resources.guest import GuestRoot
from xenlab.site.disk_plan import Partition
from xenlab.site.schema import Ssh
from xenlab.transport.local import Local

HERE = Host(Local())
TABLE = (
    Partition("biosboot", 1),
    Partition("dom0root", 16),
    Partition("mail", 16),
    Partition("web", 16),
    Partition("domuswap", 0),
)
LARGER = (*TABLE[:3], Partition("web", 17), TABLE[4])


class Asking:
    """A sink in front of which a person gives what is asked for."""

    def __init__(self) -> None:
        self.asked: list[ConsentNeeded] = []

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Consent):
            self.asked.append(event.needed)
            for made in event.needed.made or (event.needed.serial,):
                event.give(made)


@dataclass
class Machine:
    """A disk of 96 MiB whose serial may be wiped, and an image for its guests."""

    ssh: Ssh
    disk: str
    folder: Path
    books: list[Chapter] = field(default_factory=list)

    @property
    def image(self) -> Path:
        return self.folder / "base.tar.zst"

    def chapter(self, *, sink: events.Sink = events.ignore, **more: Any) -> Chapter:
        """A chapter of a run of its own."""
        bound = more.pop("may_destroy", [])
        serial = f"{self.disk} {96 << 20}"
        site = lab_site(ssh=self.ssh, disk=self.disk, may_wipe=[serial], may_destroy=bound)
        journal = Journal(self.folder / f"run{len(self.books)}")
        chapter = Chapter("01_x", site, journal, sink, **more)
        chapter.root = "/"
        self.books.append(chapter)
        return chapter

    def part(self, number: int) -> str:
        return f"{self.disk}p{number}"

    def partition(self, chapter: Chapter, table: tuple[Partition, ...] = TABLE) -> None:
        chapter.ensure("01.2 Partition", PartitionTable(self.disk, table))
        # what the kernel does by itself for a real disk
        HERE.run(f"partx -d {self.disk} || :; partx -a {self.disk}")

    def format(self, chapter: Chapter) -> None:
        names = {2: "dom0root", 3: "mail", 4: "web", 5: "domuswap"}
        wanted = [Filesystem(self.part(n), name) for n, name in names.items()]
        chapter.ensure("01.3 Make the file systems", *wanted)

    def unpack(self, chapter: Chapter) -> None:
        chapter.each(
            "09.1 Unpack",
            {
                name: GuestRoot(
                    *(name, self.part(number), str(self.image), name),
                    records=str(self.folder / "records"),
                )
                for name, number in (("mail", 3), ("web", 4))
            },
        )

    def take_image(self, content: str) -> None:
        root = self.folder / "root"
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc/content").write_text(content)
        HERE.run(f"tar -C '{root}' --zstd -cf '{self.image}' .")
        HERE.run(f"cd '{self.folder}' && sha256sum base.tar.zst > base.tar.zst.sha256")

    def install(self) -> None:
        """All of it, asked for nothing but the serial."""
        self.take_image("first")
        chapter = self.chapter()
        self.partition(chapter)
        self.format(chapter)
        self.unpack(chapter)

    def inside(self, number: int, script: str) -> str:
        """What a script says in a guest's root while that is mounted."""
        place = self.folder / "look"
        text = f"mkdir -p {place}; mount {self.part(number)} {place}; cd {place}; {script}; cd /"
        return HERE.run(f"{text}; umount {place}").stdout

    def uuid(self, number: int) -> str:
        return HERE.run(f"blkid -p -s UUID -o value {self.part(number)}").stdout.strip()

    def digest(self) -> str:
        return HERE.run(f"sha256sum {self.disk}").stdout


@pytest.fixture
def machine(sshd: Sshd, tmp_path: Path) -> Iterator[Machine]:
    image = tmp_path / "disk.img"
    HERE.run(f"truncate -s 96M '{image}'")
    disk = HERE.run(f"losetup --find --show '{image}'").stdout.strip()
    machine = Machine(Ssh(host=sshd.alias, config=str(sshd.config)), disk, tmp_path)
    try:
        yield machine
    finally:
        for chapter in machine.books:
            chapter.host.transport.close()
        HERE.run(f"partx -d {disk} || :; losetup --detach {disk}")


def last(chapter: Chapter) -> dict[str, Any]:
    return next(r for r in reversed(chapter.journal.records()) if r.get("phase") == "final")


def used(chapter: Chapter) -> list[str]:
    found = chapter.journal.records()
    return [r["message"] for r in found if r["phase"] == "consent" and r["status"] == "used"]


def test_a_first_installation_needs_the_serial_alone_and_a_second_run_nothing(
    machine: Machine,
) -> None:
    machine.install()
    chapter = machine.chapter()
    for again in (machine.partition, machine.format, machine.unpack):
        again(chapter)
        assert last(chapter)["status"] == "ok", last(chapter)
    assert used(machine.books[0]) == []


def test_the_serial_does_not_cover_what_xenlab_made(machine: Machine) -> None:
    machine.install()
    before = machine.digest()
    for names in ((), ("dom0",), ("dom0", "mail"), ("mail", "web"), ("DOM0", "mai", "web")):
        with pytest.raises(ConsentNeeded) as refused:
            machine.partition(machine.chapter(destroy=names), LARGER)
        wanted = [n for n in ("dom0", "mail", "web") if n not in names]
        assert [made.partition(" ")[0] for made in refused.value.made] == wanted
        assert all(f"--destroy {name}" in refused.value.hint for name in wanted)
    assert machine.digest() == before
    chapter = machine.chapter(destroy=("dom0", "mail", "web"))
    machine.partition(chapter, LARGER)
    assert last(chapter)["status"] == "changed"
    assert [message.partition(" ")[0] for message in used(chapter)] == ["dom0", "mail", "web"]
    # and what was made anew needs no word of its own: nothing is there yet
    machine.format(machine.chapter())


def test_a_file_system_is_made_over_another_one_by_name(machine: Machine) -> None:
    machine.install()
    wanted = Filesystem(machine.part(3), "other")
    for names in ((), ("dom0", "web")):
        with pytest.raises(ConsentNeeded, match="xenlab made.* mail \\("):
            machine.chapter(destroy=names).ensure("01.3 Make", wanted)
    assert machine.inside(3, "cat etc/content") == "first"
    machine.chapter(destroy=("mail",)).ensure("01.3 Make", wanted)


def test_a_partition_without_a_file_system_is_nobody_s(machine: Machine) -> None:
    """What a killed mkfs leaves, and `wipefs`."""
    machine.install()
    HERE.run(f"wipefs --all --quiet {machine.part(2)}")
    machine.format(machine.chapter())


def test_a_consent_to_what_is_there_now_does_not_hold_for_what_comes_after(
    machine: Machine,
) -> None:
    machine.install()
    bound = [f"mail {machine.uuid(3)}"]
    machine.chapter(may_destroy=bound).ensure("01.3 Make", Filesystem(machine.part(3), "other"))
    with pytest.raises(ConsentNeeded):
        machine.chapter(may_destroy=bound).ensure("01.3 Make", Filesystem(machine.part(3), "third"))


def test_another_image_leaves_the_guests_as_they_are_unless_one_is_named(machine: Machine) -> None:
    machine.install()
    for number in (3, 4):
        machine.inside(number, "echo precious > data")
    machine.take_image("second")
    for mode in ("plan", "apply", "apply"):
        chapter = machine.chapter(mode=mode)
        machine.unpack(chapter)
        assert last(chapter)["status"] == "ok"
        assert "mail keeps its root, made from the image" in last(chapter)["message"]
        bound = f"may_destroy: [mail {machine.uuid(3)}], has it made anew; web keeps"
        assert f"--destroy mail, or {bound}" in last(chapter)["message"]
    chapter = machine.chapter(mode="plan", destroy=("mail",))
    machine.unpack(chapter)
    assert last(chapter)["status"] == "would change"
    assert "ext4 “mail”, 16 MiB" in last(chapter)["difference"]["mail"]["rows"][0]["lost"]
    old = machine.uuid(3)
    chapter = machine.chapter(destroy=("mail",))
    machine.unpack(chapter)
    assert last(chapter)["status"] == "changed" and list(last(chapter)["difference"]) == ["mail"]
    assert used(chapter) == [f"mail {old}"]
    assert machine.inside(3, "cat etc/content; ls") == "secondetc\nlost+found\n"
    assert machine.inside(4, "cat etc/content data") == "firstprecious\n"
    chapter = machine.chapter(may_destroy=[f"web {machine.uuid(4)}"])
    machine.unpack(chapter)
    assert machine.inside(4, "cat etc/content; ls") == "secondetc\nlost+found\n"
    machine.take_image("third")
    chapter = machine.chapter(may_destroy=[f"web {machine.uuid(3)}"])
    machine.unpack(chapter)
    assert last(chapter)["status"] == "ok", "that is another one's"


def test_guests_whose_records_are_lost_are_asked_for_and_typed_names_hold_once(
    machine: Machine,
) -> None:
    machine.install()
    HERE.run(f"rm -r '{machine.folder}/records'")
    plan = machine.chapter(mode="plan")
    machine.unpack(plan)
    assert last(plan)["status"] == "would be refused"
    said = f"nobody has agreed to lose it: mail ({machine.part(3)}, ext4)"
    assert said in last(plan)["message"] and "--destroy mail --destroy" in last(plan)["message"]
    person = Asking()
    chapter = machine.chapter(sink=person.on)
    with pytest.raises(ConsentNeeded):
        machine.unpack(chapter)
    assert person.asked[0].made == (f"mail {machine.uuid(3)}", f"web {machine.uuid(4)}")
    machine.unpack(chapter)
    assert last(chapter)["status"] == "changed"
    HERE.run(f"rm -r '{machine.folder}/records'")
    with pytest.raises(ConsentNeeded):
        machine.unpack(chapter)
    assert len(person.asked) == 2


def test_a_foreign_disk_is_covered_by_its_serial(machine: Machine) -> None:
    HERE.run(f"mkfs.ext4 -q -L precious {machine.disk}")
    machine.partition(machine.chapter())


def test_a_plan_says_what_would_be_lost_and_which_names_are_wanted(machine: Machine) -> None:
    machine.install()
    chapter = machine.chapter(mode="plan")
    machine.partition(chapter, LARGER)
    record = last(chapter)
    assert record["status"] == "would be refused"
    for words in (f"dom0 ({machine.part(2)}, ext4, 16 MiB)", "--destroy dom0 --destroy mail"):
        assert words in record["message"]
    assert "\n" not in record["message"]


def by_difference(chapter: Chapter, disk: str, *table: Partition) -> dict[str, Any]:
    """Step 01.2 of a site with this table; its record."""
    wanted = PartitionTable(disk, table)
    try:
        chapter.ensure("01.2 Partition", lambda: partitioned(chapter, wanted))
    finally:
        HERE.run(f"partx -u {disk}")
    return last(chapter)


def test_a_site_that_changed_leaves_what_is_there(machine: Machine) -> None:
    table = (*TABLE[:4], Partition("domuswap", 8))
    first = machine.chapter()
    assert first.site.numbers == {}
    assert by_difference(first, machine.disk, *table)["status"] == "changed"
    assert first.site.numbers["domuswap"] == 5
    machine.format(first)
    HERE.run(f"mkdir {machine.folder}/on && mount {machine.part(2)} {machine.folder}/on")
    try:
        more = (*table[:3], Partition("files", 16), *table[3:])
        planned = by_difference(machine.chapter(mode="plan"), machine.disk, *more)
        assert planned["status"] == "would change" and "wipes" not in planned
        assert planned["difference"][""]["summary"] == f"add files on {machine.disk}"
        second = machine.chapter()
        uuids = [machine.uuid(number) for number in (2, 3, 4, 5)]
        assert by_difference(second, machine.disk, *more)["status"] == "changed"
        assert [machine.uuid(number) for number in (2, 3, 4, 5)] == uuids
        assert machine.chapter().site.numbers == second.site.numbers | {"files": 6}
        again = by_difference(second, machine.disk, *more)
        assert again["status"] == "ok" and "message" not in again
        less = by_difference(second, machine.disk, *more[:4], more[5])
        assert less["status"] == "ok"
        assert less["message"] == "web (16 MiB) is not in the site's file: it is kept"
        refused = by_difference(machine.chapter(mode="plan"), machine.disk, *LARGER)
        assert refused["status"] == "would be refused"
        with pytest.raises(StepFailed, match="web has 16 MiB and must have 17 MiB, and 0 MiB"):
            by_difference(second, machine.disk, *LARGER)
    finally:
        HERE.run(f"umount {machine.folder}/on")
    # from a rescue system it can be made anew, by all names
    asking = Asking()
    third = machine.chapter(sink=asking.on)
    with pytest.raises(ConsentNeeded, match="dom0 .*mail .*web "):
        by_difference(third, machine.disk, *LARGER)
    assert [made.split()[0] for made in asking.asked[0].made] == ["dom0", "mail", "web"]
    assert by_difference(third, machine.disk, *LARGER)["status"] == "changed"
    assert third.site.numbers["domuswap"] == 5 and "files" not in third.site.numbers
