"""The runbook as shell: every chapter of every site is a script that a shell can read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.site_files import with_files
from tests.ssh.conftest import Sshd, make_sshd, sshd

from xenlab.chapters.kernel import release_by_hand
from xenlab.cli.cli import main
from xenlab.command import CONTROLLER, MACHINE, Command
from xenlab.errors import BadInput
from xenlab.resources.base import Once, Resource
from xenlab.resources.files import File, Line
from xenlab.runs import execute, script
from xenlab.runs.script import Runbook, write

__all__ = ["make_sshd", "sshd"]

ROOT = Path(__file__).parents[2]
BOOT = "11111111-1111-4111-8111-111111111111"
BLOCK = re.compile(r"^(?:filled|on \S+ \S+) <<'(\w+)'.*?\n(.*?)\n\1\n", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["lab", "lab-gentoo", "debian", "gentoo"])
def test_a_shell_can_read_every_chapter_of_every_site(tmp_path: Path, name: str) -> None:
    file = with_files(tmp_path, name)
    plan = execute.prepare(ROOT / "notebooks", (), file, mode="plan")
    known = {"RELEASE": release_by_hand(plan.site)}
    files = write(plan, tmp_path / "runbook", known)
    # the first only looks, and so do the last two, where nobody asks for updates and backups
    assert [path.stem for path in files] == [path.stem for path in plan.notebooks[1:-2]]
    for path in files:
        subprocess.run(["sh", "-n", path], check=True)
        text = path.read_text()
        blocks = [block for _, block in BLOCK.findall(text)]
        assert blocks
        for block in blocks:
            subprocess.run(["sh", "-n"], input=block, text=True, check=True)
        for step in execute.step_cells(ROOT / "notebooks" / f"{path.stem}.ipynb"):
            assert text.count(f"echo {Command.argv(step.title).text}\n") <= 1
    first = (tmp_path / "runbook" / "01_partitions.sh").read_text()
    assert "sfdisk --wipe always" in first and "mkfs.ext4" in first


def test_a_uefi_machine_has_its_own_commands_in_the_runbook(tmp_path: Path) -> None:
    file = with_files(tmp_path, "lab")
    file.write_text(f"{file.read_text()}firmware: uefi\n".replace("firmware: bios\n", ""))
    plan = execute.prepare(ROOT / "notebooks", ("01", "02", "04"), file, mode="plan")
    known = {"RELEASE": release_by_hand(plan.site)}
    first, second, fourth = write(plan, tmp_path / "runbook", known)
    assert "mkfs.vfat -F 32 -n esp /dev/vda1" in first.read_text()
    assert "mount -t vfat -o umask=0077 /dev/vda1 /mnt/dom0/boot/efi" in first.read_text()
    assert "grub-efi-amd64 efibootmgr dosfstools" in second.read_text()
    for option in ("--removable", "--bootloader-id=xenlab"):
        wanted = f"grub-install --target=x86_64-efi --efi-directory=/boot/efi {option}"
        assert wanted in fourth.read_text()
    for path in (first, second, fourth):
        subprocess.run(["sh", "-n", path], check=True)
        assert "biosboot" not in path.read_text() and "grub-pc" not in path.read_text()


def test_the_distributions_kernel_and_volumes_have_their_own_commands(tmp_path: Path) -> None:
    file = with_files(tmp_path, "lab")
    own = {"kernel": "distribution", "guest_disks": "lvm", "shared_usr": []}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | own))
    plan = execute.prepare(
        ROOT / "notebooks", ("01", "03", "04", "08", "09", "10"), file, mode="plan"
    )
    known = {"RELEASE": release_by_hand(plan.site)}
    files = write(plan, tmp_path / "runbook", known)
    text = {path.stem[:2]: path.read_text() for path in files}
    for path in files:
        subprocess.run(["sh", "-n", path], check=True)
        assert "tinyconfig" not in path.read_text() and "swapfile" not in path.read_text()
    settings, tools, image = (
        text["03"].index(words)
        for words in ("MODULES=most", "initramfs-tools zstd", "-recommends linux-image-amd64")
    )
    assert settings < tools < image
    assert "initrd.img-$release" in text["04"] and "/vmlinuz-$RELEASE" not in text["04"]
    assert "ln -sfn ../boot/initrd.img-RELEASE /xenboot/initrd-domU" in text["08"]
    assert "fallocate" not in text["01"]
    order = [
        text["09"].index(words)
        for words in (
            "install -y --no-install-recommends lvm2",
            "pvcreate /dev/vda6\nvgcreate xenlab /dev/vda6",
            "lvcreate -n domu1 -L 1536m xenlab",
            "mkfs.ext4 -q -L domu1 /dev/xenlab/domu1",
        )
    ]
    assert order == sorted(order)
    assert 'ramdisk = "/xenboot/initrd-domU"' in text["10"]
    assert "/dev/xenlab/domu1.swap,raw,xvda2,rw" in text["10"]


def test_a_guest_without_an_alias_is_reached_through_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = with_files(tmp_path, "debian")
    plan = execute.prepare(ROOT / "notebooks", ("09", "11"), file, mode="plan")
    known = {"RELEASE": release_by_hand(plan.site)}
    for path in write(plan, tmp_path / "named", known):
        assert f'\nssh() {{ command ssh -F {tmp_path}/ssh_config -o BatchMode=yes "$@"; }}\n' in (
            path.read_text()
        )
    config = tmp_path / "ssh_config"
    config.write_text("Host castle\n  HostName 192.0.2.1\n  User admin\n")
    ninth, eleventh = write(plan, tmp_path / "unnamed", known)
    pins = f"{tmp_path}/xenlab/castle/known_hosts"
    assert f"mkdir -p -m 700 {tmp_path}/xenlab/castle\n" in ninth.read_text()
    assert f"sed 's|^|mail |' >> {pins}\n" in ninth.read_text()
    # what ssh itself makes of the words
    head = eleventh.read_text().partition("\non() {")[0]
    asked = f'{head}\ncommand() {{ shift; exec ssh -G -T "$@"; }}\nssh web true\n'
    told = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout
    settings = dict(line.split(" ", 1) for line in told.splitlines())
    assert settings["hostname"] == "192.0.2.12" and settings["port"] == "22"
    assert settings["user"] == "admin" and settings["hostkeyalias"] == "web"
    assert settings["userknownhostsfile"] == pins
    jump = f"ssh -F {config} -o BatchMode=yes -W %h:%p castle"
    assert settings["proxycommand"] == jump


def test_what_a_site_says_of_its_guests_is_in_the_runbook(tmp_path: Path) -> None:
    file = with_files(tmp_path, "debian")
    values = yaml.safe_load(file.read_text())
    apart = {"port": 24, "user": "root", "identity": "/keys/own"}
    file.write_text(yaml.safe_dump(values | {"guest_ssh": apart}))
    plan = execute.prepare(ROOT / "notebooks", ("11",), file, mode="plan")
    (path,) = write(plan, tmp_path / "runbook", {"RELEASE": release_by_hand(plan.site)})
    words = "-oPort=24 -oUser=root -oIdentityFile=/keys/own -F"
    assert f"\n    web) shift; command ssh {words} " in path.read_text()
    for other in (
        {"dom0_ssh": {"port": 24}},
        {"ssh": values["ssh"] | {"rescue_address": "192.0.2.9"}},
    ):
        file.write_text(yaml.safe_dump(values | other))
        plan = execute.prepare(ROOT / "notebooks", ("11",), file, mode="plan")
        with pytest.raises(BadInput, match="reached in two ways"):
            write(plan, tmp_path / "none", {})
        assert not (tmp_path / "none").exists()
    file.write_text(yaml.safe_dump(values | {"guest_ssh": {"become": "sudo"}}))
    plan = execute.prepare(ROOT / "notebooks", ("11",), file, mode="plan")
    with pytest.raises(BadInput, match="because a login becomes root"):
        write(plan, tmp_path / "none", {})


def test_the_command_line_writes_the_chapters_that_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = with_files(tmp_path, "lab"), tmp_path / "runbook"
    words = ["script", "-f", str(file), "--notebooks", str(ROOT / "notebooks")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "-o", str(folder), "01", "11"])
    assert ended.value.code == 0
    names = ["01_partitions.sh", "11_action.sh"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    with pytest.raises(SystemExit) as refused:
        main([*words, "-o", str(folder)])
    assert refused.value.code == 2


def run(runbook: Runbook, folder: Path, **known: Command) -> subprocess.CompletedProcess[str]:
    notebook = ROOT / "notebooks" / "05_base_configuration.ipynb"
    path = folder / "chapter.sh"
    path.write_text(script.as_text(notebook, runbook, known))
    return subprocess.run(["sh", path], capture_output=True, text=True, timeout=120)


@pytest.fixture
def runbook(sshd: Sshd, tmp_path: Path) -> Runbook:
    """A chapter of a site whose machine is a real sshd's."""
    plan = execute.prepare(ROOT / "notebooks", (), with_files(tmp_path, "lab"), mode="plan")
    ssh = plan.site.ssh.model_copy(update={"host": sshd.alias, "config": str(sshd.config)})
    return Runbook("05_base_configuration", plan.site.model_copy(update={"ssh": ssh}))


class Typed(Resource):
    """Commands as they are given."""

    def __init__(self, *commands: Command) -> None:
        self._commands = commands

    def probe(self, host: object) -> None:
        raise AssertionError("a script is written without a look")

    def commands(self) -> tuple[Command, ...]:
        return self._commands


def test_what_is_written_does_on_the_machine_what_a_step_does(
    runbook: Runbook, tmp_path: Path
) -> None:
    file, text = tmp_path / "a file", "it's $HOME\n`x` \\n END\nXENLAB\n"
    runbook.ensure("05.1 Write", File(str(file), text, mode=0o640), Line(str(file), "b=2", "b="))
    runbook.each(
        "05.2 Once", {"a": Once("proof", Typed(Command("cat")), records=f"{tmp_path}/shown")}
    )
    done = run(runbook, tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == f"{text}b=2\n"
    assert file.stat().st_mode & 0o777 == 0o640
    # "cat" had nothing to read: the rest of the script is not its input
    assert (tmp_path / "shown" / "proof").exists()
    assert done.stdout.splitlines() == ["05.1 Write", "05.2 Once"]


def test_the_first_command_that_fails_ends_the_script(runbook: Runbook, tmp_path: Path) -> None:
    runbook.ensure("05.1 Fail", Typed(Command("false"), Command.argv("touch", tmp_path / "after")))
    runbook.ensure("05.2 Next", Typed(Command.argv("touch", tmp_path / "next")))
    done = run(runbook, tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "after").exists() and not (tmp_path / "next").exists()


def test_words_that_only_a_build_knows_are_asked_for(runbook: Runbook, tmp_path: Path) -> None:
    far, near = tmp_path / "vmlinuz-RELEASE", tmp_path / "config-RELEASE"
    commands = (
        Command.argv("touch", far),
        Command.argv("touch", near).at(CONTROLLER),
        Command.sh("[ ! -e {file} ] && touch {file}", file=tmp_path / "outside").at(MACHINE),
    )
    runbook.ensure("05.1 Touch", Typed(*commands))
    done = run(runbook, tmp_path, RELEASE=Command("echo 6.1.2-xen0"))
    assert done.returncode == 0, done.stderr
    for path in (far, near):
        assert Path(str(path).replace("RELEASE", "6.1.2-xen0")).exists()
    assert (tmp_path / "outside").exists()


def test_the_machine_s_name_is_one_word_on_the_controller(runbook: Runbook, tmp_path: Path) -> None:
    name = f"a\\1$(touch {tmp_path}/made)"
    ssh = runbook.site.ssh.model_copy(update={"host": name})
    runbook.site = runbook.site.model_copy(update={"ssh": ssh})
    runbook.ensure("05.1 Say", Typed(Command("printf '%s\\n' dom0:/file").at(CONTROLLER)))
    done = run(runbook, tmp_path)
    assert done.stdout.splitlines()[-1] == f"{name}:/file", done.stderr
    assert not (tmp_path / "made").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A block device with two partitions that have names."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    table = 'label: gpt\nname="boot", size=1MiB, uuid={1}\nname="boot2", uuid={2}\n'
    table = table.replace("{1}", BOOT).replace("{2}", BOOT.replace("1", "2"))
    subprocess.run(["sfdisk", "-q", image], input=table, text=True, check=True)
    words = ["losetup", "--find", "--show", str(image)]
    name = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


def test_a_partition_s_uuid_is_asked_for(runbook: Runbook, tmp_path: Path, disk: str) -> None:
    runbook.site = runbook.site.model_copy(update={"disk": disk})
    file = tmp_path / "fstab"
    runbook.ensure("05.1 Write", File(str(file), "UUID-of-boot2 UUID-of-boot UUID-of-none\n"))
    done = run(runbook, tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == f"{BOOT.replace('1', '2')} {BOOT} UUID-of-none\n"


def test_what_needs_a_look_at_the_machine_ends_the_script_with_a_word(
    runbook: Runbook, tmp_path: Path
) -> None:
    runbook.ensure("05.1 Look", lambda: File("/x", runbook.host.run("cat /y").stdout))
    done = run(runbook, tmp_path)
    assert done.returncode == 1
    assert "a script is written without a look" in (tmp_path / "chapter.sh").read_text()
