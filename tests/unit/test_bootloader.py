"""What boots: GRUB's menu, the hypervisor's names, power, what a machine says that it runs."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sites import lab_site

from xenlab.chapters.kernel import SCREEN_OPTIONS, UEFI_OPTIONS, kernel_build
from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, ConnectionRefused, HostKeyRefused, StepFailed
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab.platform.boot import Grub2, GrubMenu, GrubOnEfi, XenEntry, bootloader, serial_command
from xenlab.platform.portage import Portage
from xenlab.platform.power import Ipmi, Lab, Manual, Medium, power, reboot
from xenlab.quoting import grub
from xenlab.resources.base import Asked, Report
from xenlab.resources.files import File
from xenlab.resources.xen import XenState, compare, link_names, newest_image, parse_state
from xenlab.transport.local import Local

RECORDED = Path(__file__).parents[1] / "recorded"
SITE = lab_site(
    xen_options="console=com1 com1=115200,8n1 dom0_max_vcpus=2",
    dom0_options="console=hvc0 net.ifnames=0",
)
ENTRY = XenEntry("6.1.192-xen0", SITE.dom0_mem_mib, SITE.xen_options, SITE.dom0_options)

words = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))), max_size=5)


def silent(what: str, done: float | None = None) -> None:
    """A report nobody reads."""


# -- the entry


def test_dom0_gets_its_memory_and_no_more() -> None:
    assert ENTRY.xen_words == [
        "dom0_mem=1024M,max:1024M",
        "console=com1",
        "com1=115200,8n1",
        "dom0_max_vcpus=2",
    ]


def test_options_that_cannot_be_split_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match="xen_options"):
        _ = XenEntry("6.1", 1024, xen_options="console='com1").xen_words
    with pytest.raises(BadInput, match="dom0_options"):
        _ = XenEntry("6.1", 1024, dom0_options='dyndbg="file x').dom0_words


@given(words)
def test_grub_reads_back_the_words_that_it_is_given(given_words: list[str]) -> None:
    assert shlex.split(grub(given_words)) == given_words


def test_plain_words_stay_as_they_are() -> None:
    assert grub(ENTRY.xen_words) == " ".join(ENTRY.xen_words)


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("com1=115200,8n1", "serial --unit=0 --speed=115200"),
        ("com2=9600", "serial --unit=1 --speed=9600"),
        ("console=com1", ""),
        ("com1=auto", ""),
    ],
)
def test_grub_speaks_on_the_line_that_xen_speaks_on(option: str, command: str) -> None:
    assert serial_command(["console=vga", option]) == command


def test_a_platform_without_an_answer_is_said() -> None:
    with pytest.raises(BadInput, match="gentoo-2006"):
        bootloader("gentoo-2006")


# What stands in for GRUB's library: the function that the script calls.
LIBRARY = "make_system_path_relative_to_its_root() { echo /; }"


def menu_entry(entry: XenEntry, folder: Path, **root: str) -> list[str]:
    """What the script for the entry prints."""
    script = next(r for r in Grub2().entry(entry) if getattr(r, "path", "").endswith("08_xenlab"))
    assert isinstance(script, File)
    (folder / "grub-mkconfig_lib").write_text(LIBRARY)
    environment = {
        "pkgdatadir": str(folder),
        "GRUB_DEVICE_PARTUUID": "8a2c-01",
        "GRUB_DEVICE_BOOT_UUID": "a567-57b2",
        "PATH": "/usr/bin:/bin",
    } | root
    words = ["/bin/sh", "-c", script.text()]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_entry_is_the_howto_s_line_by_line(tmp_path: Path) -> None:
    assert menu_entry(ENTRY, tmp_path) == [
        "menuentry 'Xen hypervisor, dom0 with Linux 6.1.192-xen0' --class xenlab --id xenlab {",
        "\tsearch --no-floppy --fs-uuid --set=root a567-57b2",
        "\tmultiboot2 /xen.gz placeholder dom0_mem=1024M,max:1024M console=com1 com1=115200,8n1"
        " dom0_max_vcpus=2",
        "\tmodule2 /vmlinuz-6.1.192-xen0 placeholder root=PARTUUID=8a2c-01 ro console=hvc0"
        " net.ifnames=0",
        "}",
        "menuentry 'Linux 6.1.192-xen0 without a hypervisor' --class xenlab-native"
        " --id xenlab-native {",
        "\tsearch --no-floppy --fs-uuid --set=root a567-57b2",
        "\tlinux /vmlinuz-6.1.192-xen0 root=PARTUUID=8a2c-01 ro net.ifnames=0 console=ttyS0,115200",
        "}",
    ]


def test_an_initrd_finds_a_root_that_is_an_array(tmp_path: Path) -> None:
    array = {"GRUB_DEVICE_PARTUUID": "", "GRUB_DEVICE_UUID": "6103fbec"}
    lines = menu_entry(replace(ENTRY, initrd=True), tmp_path, **array)
    assert len([line for line in lines if " root=UUID=6103fbec ro " in line]) == 2
    with pytest.raises(subprocess.CalledProcessError) as none:
        menu_entry(ENTRY, tmp_path, **array)
    assert "the root partition has no PARTUUID" in none.value.stderr


def test_a_kernel_with_an_initrd_has_it_in_both_entries(tmp_path: Path) -> None:
    entry = replace(ENTRY, initrd=True)
    lines, plain = menu_entry(entry, tmp_path), menu_entry(ENTRY, tmp_path)
    assert [line for line in lines if line not in plain] == [
        "\tmodule2 --nounzip /initrd.img-6.1.192-xen0",
        "\tinitrd /initrd.img-6.1.192-xen0",
    ]
    assert (lines.index("}"), len(lines)) == (5, 11)
    menu, bare = Grub2().menu(entry), Grub2().menu(ENTRY)
    assert isinstance(menu, GrubMenu) and isinstance(bare, GrubMenu)
    assert {*menu.lines()} - {*bare.lines()} == {lines[4].strip()}


NASTY = "a=$(touch /tmp/x) b=`id` c=\\\"d\\\" e='f g' h;reboot i|j k>l \\$m {n} %s"


def test_nothing_in_an_option_is_run_or_changed(tmp_path: Path) -> None:
    entry = XenEntry("6.1", 512, xen_options=NASTY, dom0_options=NASTY)
    lines = menu_entry(entry, tmp_path)
    assert shlex.split(lines[2])[2:] == ["placeholder", *entry.xen_words]
    assert shlex.split(lines[3])[4:] == ["ro", *entry.dom0_words]


# -- the menu that the real grub-mkconfig made of it


def test_a_real_menu_holds_the_entry() -> None:
    text = (RECORDED / "grub.cfg").read_text()
    menu = Grub2().menu(ENTRY)
    assert isinstance(menu, GrubMenu)
    assert [line for line in menu.lines() if line not in text] == []


def test_a_real_menu_of_other_options_is_not_it() -> None:
    text = (RECORDED / "grub.cfg").read_text()
    menu = Grub2().menu(XenEntry("6.1.192-xen0", 2048, SITE.xen_options, SITE.dom0_options))
    assert isinstance(menu, GrubMenu)
    assert [line for line in menu.lines() if line not in text] == [menu.lines()[1]]


# -- GRUB's own code


def test_grub_goes_where_the_firmware_looks() -> None:
    (bios,) = Grub2().installed("/dev/vda").commands()
    assert bios.by_hand() == "grub-install --target=i386-pc /dev/vda"
    uefi = Grub2().installed("/dev/vda", "uefi")
    assert isinstance(uefi, GrubOnEfi)
    (command,) = uefi.commands()
    options = "--target=x86_64-efi --efi-directory=/boot/efi"
    assert command.by_hand().splitlines() == [
        f"grub-install {options} --removable",
        f"grub-install {options} --bootloader-id=xenlab",
    ]
    assert "--no-nvram" in command.in_script()
    for text in (command.text, command.in_script()):
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_a_machine_without_it_gets_grub_for_uefi() -> None:
    difference = GrubOnEfi("/dev/vda").probe(Host(Local()))
    assert difference is not None
    assert difference.summary == "install GRUB for UEFI on /dev/vda"


def test_packages_are_for_the_firmware() -> None:
    debian = Apt()
    assert debian.hypervisor() == debian.hypervisor("bios")
    (command, *_) = debian.hypervisor("bios").commands()
    assert "grub-pc" in command.text
    text = "".join(command.text for command in debian.hypervisor("uefi").commands())
    assert "grub-pc" not in text
    assert {"grub-efi-amd64", "efibootmgr", "dosfstools"} <= set(text.replace("'", " ").split())
    gentoo = Portage(SITE.portage)
    assert gentoo.hypervisor() == gentoo.hypervisor("bios")
    text = "".join(command.text for command in gentoo.hypervisor("uefi").commands())
    assert "sys-boot/efibootmgr" in text and "xenlab-uefi" in text
    for answer, name in ((debian, "grub-efi-amd64"), (gentoo, "sys-boot/grub")):
        with pytest.raises(BadInput):
            answer.removed(name)


def test_dom0s_kernel_mounts_the_system_partition_and_no_guests_does() -> None:
    uefi = lab_site(firmware="uefi", kernel_options=["CONFIG_E1000E=y"])
    assert kernel_build(uefi, "dom0").own_options == (*UEFI_OPTIONS, "CONFIG_E1000E=y")
    assert "CONFIG_VFAT_FS=y" in UEFI_OPTIONS
    screen = lab_site(screen=True)
    assert kernel_build(screen, "dom0").own_options == SCREEN_OPTIONS
    assert kernel_build(screen, "domU").own_options == ()
    both = lab_site(screen=True, firmware="uefi")
    assert {*kernel_build(both, "dom0").own_options} > {*SCREEN_OPTIONS, *UEFI_OPTIONS}
    vlan = lab_site(uplink_vlan=7, kernel_options=["CONFIG_E1000E=y"])
    assert kernel_build(vlan, "dom0").own_options == ("CONFIG_VLAN_8021Q=y", "CONFIG_E1000E=y")
    assert kernel_build(vlan, "domU").own_options == ()
    bond = lab_site(uplink_bond={"members": ["eth1"], "mode": "802.3ad"}, uplink_vlan=7)
    vlan_on_it = ("CONFIG_BONDING=y", "CONFIG_VLAN_8021Q=y")
    assert kernel_build(bond, "dom0").own_options == vlan_on_it
    assert kernel_build(uefi, "domU") == kernel_build(lab_site(), "domU")
    assert kernel_build(lab_site(), "dom0").own_options == ()


# -- the hypervisor's names


def test_the_newest_image_is_linked_and_not_a_link() -> None:
    found = {
        "xen.gz": "xen-4.9-amd64.gz",
        "xen-4.9-amd64.gz": "",
        "xen-4.17-amd64.gz": "",
        "xen-syms-4.17.gz": "",
    }
    assert newest_image(found) == "xen-4.17-amd64.gz"
    assert newest_image({"xen.gz": "xen-4.9.gz"}) == ""


@pytest.mark.parametrize(
    ("image", "names"),
    [
        ("xen-4.17-amd64.gz", ("xen.gz", "xen-4.gz", "xen-4.17.gz")),
        ("xen-4.19.1.gz", ("xen.gz", "xen-4.gz", "xen-4.19.gz")),
        ("xen-3.0.gz", ("xen.gz", "xen-3.gz")),
    ],
)
def test_an_image_is_known_by_the_howto_s_names(image: str, names: tuple[str, ...]) -> None:
    assert link_names(image) == names


@given(st.dictionaries(st.text(), st.text()))
def test_whatever_lies_in_boot_is_no_surprise(found: dict[str, str]) -> None:
    image = newest_image(found)
    assert not image or (image in found and "xen.gz" in link_names(image))


# -- what runs


RUNNING = parse_state((RECORDED / "running-xen.txt").read_text())


def test_a_real_dom0_is_recognised() -> None:
    assert RUNNING.dom0
    assert RUNNING.release == "6.1.192-xen0"
    assert compare(RUNNING, ENTRY.release, ENTRY.xen_words, ENTRY.dom0_words) is None


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (XenEntry("6.1.193-xen0", 1024, "", ""), "kernel"),
        (XenEntry("6.1.192-xen0", 2048, "", ""), "Xen's options"),
        (XenEntry("6.1.192-xen0", 1024, "", "quiet"), "kernel's options"),
    ],
)
def test_what_runs_otherwise_is_named(entry: XenEntry, what: str) -> None:
    difference = compare(RUNNING, entry.release, entry.xen_words, entry.dom0_words)
    assert difference is not None
    assert [row["what"] for row in difference.rows] == [what]


def test_a_machine_without_xen_is_to_be_booted() -> None:
    difference = compare(None, "6.1", [], [])
    assert difference is not None
    assert "boot the disk" in difference.summary


def test_a_toolstack_that_does_not_answer_is_not_dom0_yet() -> None:
    state = parse_state("6.1-xen0\nro console=hvc0\n\n")
    assert state == XenState("6.1-xen0", ("ro", "console=hvc0"), False, "")


def test_a_dom0_without_its_tools_is_not_booted_again() -> None:
    with pytest.raises(StepFailed, match="because there is no xl in dom0"):
        parse_state("6.1-xen0\nro console=hvc0\ndom0\nthere is no xl\n")


# -- power


def test_each_answer_is_the_site_s() -> None:
    lab = power(lab_site(power="lab", lab="other"))
    assert isinstance(lab, Lab)
    assert lab.name == "other"
    assert isinstance(power(lab_site(power="manual")), Manual)


IPMI = {"IPMI_HOST": "bmc.example.org", "IPMI_USER": "operator", "IPMI_PASSWORD": "s3cret"}


def test_ipmi_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="IPMI_USER, IPMI_PASSWORD"):
        Ipmi.from_environment({"IPMI_HOST": "bmc"})
    for name in ("sh", "bash", "env", "setsid", "timeout"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="ipmitool is not on the controller\nTry: apt-get inst"):
        Ipmi().ready(Host(Local()))


def ipmitool(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A stand-in that notes its words in ``called`` and then does what ``answer`` says."""
    program = folder / "ipmitool"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n{answer}\n')
    program.chmod(0o755)
    for name, value in {**IPMI, "PATH": f"{folder}:/usr/bin:/bin"}.items():
        monkeypatch.setenv(name, value)


def test_a_boot_device_that_is_refused_ends_the_step_before_the_power_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ipmitool 1.8.19 does where ipmi_sim knows no floppy: it says so, and ends with 0."""
    said = "Set Chassis Boot Parameter 5 failed: Unspecified error"
    ipmitool(tmp_path, monkeypatch, f"echo '{said}' >&2; exit 0")
    with pytest.raises(CommandFailed, match=said):
        Ipmi("usb").boot("rescue", Host(Local()), lambda what, done=None: None)
    (called,) = (tmp_path / "called").read_text().splitlines()
    assert called.endswith("bootdev floppy")


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({}, "pxe"),
        ({"ipmi_boot": "cdrom", "ipmi_efiboot": True}, "cdrom options=efiboot"),
        ({"ipmi_boot": "usb", "firmware": "uefi"}, "floppy options=efiboot"),
        ({"ipmi_boot": "usb"}, "floppy"),
    ],
)
def test_ipmi_boots_what_the_site_says_and_no_command_holds_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], device: str
) -> None:
    """The program is a stand-in that notes its words: what is tried is how it is called."""
    ipmitool(tmp_path, monkeypatch, "echo Set Boot Device to pxe")
    own, said = power(lab_site(power="ipmi", **changes)), list[str]()
    assert isinstance(own, Ipmi)
    controller = Host(Local())
    own.ready(controller)
    own.boot("rescue", controller, lambda what, done=None: said.append(what))
    login = "-I lanplus -H bmc.example.org -U operator -E chassis"
    assert (tmp_path / "called").read_text().splitlines() == [
        f"{login} power status",
        f"{login} bootdev {device}",
        f"{login} power cycle",
    ]
    recorded = "\n".join([*said, *(command.text for command in own.commands("rescue"))])
    assert [value for value in IPMI.values() if value in recorded] == []


class Booting(Local):
    """This machine, which answers each question for its boot id with the next of a list."""

    def __init__(self, *boot_ids: str | Exception) -> None:
        super().__init__("machine")
        self.boot_ids = list(boot_ids)

    def execute(self, text: str, **more: object) -> tuple[int, bytes, bytes]:
        answer = self.boot_ids.pop(0) if len(self.boot_ids) > 1 else self.boot_ids[0]
        if isinstance(answer, Exception):
            raise answer
        return 0, f"{answer}\n".encode(), b""


class Quick:
    """A power that takes a second at most, and remembers what it was asked."""

    seconds = 1.0

    def __init__(self) -> None:
        self.asked: list[str] = []

    def commands(self, medium: Medium) -> tuple[Command, ...]:
        return ()

    def boot(self, medium: Medium, controller: Host, report: Report) -> None:
        self.asked.append(medium)


def test_a_boot_is_proven_by_a_new_boot_id() -> None:
    quick = Quick()
    machine = Host(Booting("old", "old", ConnectionRefused("nobody there"), "new"))
    quick.seconds = 30.0
    assert reboot(quick, "disk", machine, Host(Local()), silent) == "new"
    assert quick.asked == ["disk"]


def test_a_machine_that_does_not_come_back_is_said() -> None:
    machine = Host(Booting("old", "old"))
    with pytest.raises(
        StepFailed, match="cannot boot the disk: because there was no new boot within 1 s"
    ):
        reboot(Quick(), "disk", machine, Host(Local()), silent)


def test_another_machine_s_key_after_the_boot_is_refused_at_once() -> None:
    machine = Host(Booting("old", HostKeyRefused("another key")))
    with pytest.raises(HostKeyRefused):
        reboot(Quick(), "rescue", machine, Host(Local()), silent)


def test_a_person_is_told_what_to_do() -> None:
    said: list[str] = []
    Manual().boot("rescue", Host(Local()), lambda what, done=None: said.append(what))
    (words,) = said
    assert isinstance(words, Asked) and words.startswith("boot the machine from its rescue system.")


def test_the_lab_s_machine_does_not_carry_the_step_s_mark() -> None:
    marked = Host(Local()).marked("run/04.8/1")
    mark = marked.marked("").run(Command("echo ${XENLAB_STEP-none}")).stdout.strip()
    assert marked.mark and not mark.startswith(marked.mark)
