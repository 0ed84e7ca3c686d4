"""What stands in a rendered file is what the program that reads the file gets, or it is refused.

Each kind of file is read back by its own reader, but for two: xl's (test_toolstack asks it;
Python's reader of strings knows the same escapes) and that of exports(5).
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.sites import lab_site

from xenlab import quoting
from xenlab.chapter.chapter import Chapter
from xenlab.chapters import configuration, disk
from xenlab.chapters.configuration import bridge_settings
from xenlab.chapters.shared_usr import READ_ONLY, exports_file
from xenlab.errors import BadInput
from xenlab.platform.boot import Grub2, XenEntry
from xenlab.platform.interfaces import DebianGuest, GuestSettings, Ifupdown
from xenlab.platform.xl import Disk, DomainSpec, Vif, Xl, xl_config
from xenlab.resources.files import File
from xenlab.resources.nfs import NfsMount
from xenlab.resources.xen import DomainAddition
from xenlab.site.schema import Parameters

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "lib" / "xenlab" / "templates"
IFQUERY = ROOT / ".venv" / "ifupdown" / "sbin" / "ifquery"

LINES = st.text(
    st.one_of(
        st.sampled_from(" '\"`$\\%#;&|<>(){}[]*?!~=,:@^"),
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")),
    ),
    min_size=1,
    max_size=30,
)
HOSTILE = "/mnt/$(touch T)`touch T` 'a' \"b\" \\c %h ${d} #e ; touch T"

few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def kept(quote: Callable[[str], str], text: str) -> str:
    """What a filter makes of a text; "" where it refuses it."""
    try:
        return quote(text)
    except BadInput:
        return ""


def run(*words: str, **options: Any) -> str:
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60, **options)
    return str(done.stdout)


def unit_dump(folder: Path, name: str, text: str) -> dict[str, list[str]]:
    """What systemd has read in a unit: each property, with its values."""
    units = folder / "units"
    units.mkdir(exist_ok=True)
    (units / name).write_text(text)
    environment = os.environ | {
        "SYSTEMD_UNIT_PATH": str(units),
        "SYSTEMD_LOG_LEVEL": "debug",
        "SYSTEMD_LOG_TARGET": "console",
        "XDG_RUNTIME_DIR": str(folder),
        "HOME": str(folder),
    }
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", str(units / name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    dump = done.stdout.partition(f"-> Unit {name}:\n")[2]
    assert dump, done.stderr
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^\t\t(\w+): (.*?)(?: \(origin[^()]*\))?$", dump, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def assignments(text: str) -> dict[str, Any]:
    """A file of xl.cfg(5): Python reads its strings, numbers and lists as xl does."""
    tree = ast.parse(text)
    pairs = [(s.targets[0], s.value) for s in tree.body if isinstance(s, ast.Assign)]
    return {ast.unparse(name): ast.literal_eval(value) for name, value in pairs}


def exported(text: str) -> list[str]:
    """The paths of exports(5): words, in which a backslash and three octal digits are one byte."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    octal = re.compile(rb"\\([0-7]{3})")
    paths = [line.split()[0].encode() for line in lines]
    return [octal.sub(lambda m: bytes([int(m[1], 8)]), path).decode() for path in paths]


# -- by construction


def test_a_template_writes_nothing_without_a_filter() -> None:
    template = quoting.environment().from_string("{{ text }}")
    with pytest.raises(TypeError, match="without a filter of its file"):
        template.render(text="a")
    assert template.render(text=quoting.sh("a b")) == "'a b'"
    assert template.render(text=7) == "7"


@pytest.mark.parametrize("name", sorted(quoting.FILTERS))
def test_no_filter_lets_a_value_end_its_line(name: str) -> None:
    listed = name in ("grub", "xl_list")
    for text in ("a\nb", "a\rb", "a\x00b", "a\u2028b"):
        with pytest.raises(BadInput):
            quoting.FILTERS[name]([text] if listed else text)


# -- each filter, read back


@few
@given(LINES)
@example(HOSTILE)
def test_sh(text: str) -> None:
    assert run("sh", "-c", f"printf %s {quoting.sh(text)}") == text


@few
@given(LINES)
@example(HOSTILE)
def test_settings_that_a_shell_sources(tmp_path: Path, text: str) -> None:
    place = tmp_path / "settings"
    place.write_text(quoting.sh_settings({"A": text, "B": "two"}))
    assert run("sh", "-c", f'. {place}; printf %s "$A|$B"') == f"{text}|two"


def test_settings_are_lines() -> None:
    site = lab_site().model_copy(update={"uplink": "eth0\nBRIDGE=x", "lan_bridge": "a\nb"})
    with pytest.raises(BadInput, match="into a line of a file"):
        bridge_settings(site, "/etc/default/xenlab-bridge")
    with pytest.raises(BadInput, match="into a line of a file"):
        configuration.lan_settings(site)


@few
@given(LINES)
@example(HOSTILE)
def test_double_quoted(text: str) -> None:
    if quoted := kept(quoting.double_quoted, text):
        assert run("sh", "-c", f'a={quoted}; printf %s "$a"') == text
        assert shlex.split(quoted) == [text]


@few
@given(LINES)
@example(HOSTILE)
def test_fstab(tmp_path: Path, text: str) -> None:
    place = tmp_path / "fstab"
    place.write_text(f"host:/a\t{quoting.fstab('/' + text)}\tnfs4\tro\t0\t0\n")
    found = run("findmnt", "--fstab", "--tab-file", str(place), "-J", "-o", "TARGET")
    assert json.loads(found)["filesystems"] == [{"target": "/" + text}]


@few
@given(LINES)
@example(HOSTILE)
def test_exports(text: str) -> None:
    assert exported(f"{quoting.exports('/' + text)} 10.0.0.0/8(ro)\n") == ["/" + text]


@few
@given(LINES)
@example(HOSTILE)
@example("a/b-c.d")
def test_units(tmp_path: Path, text: str) -> None:
    text = text[:15]  # a unit's name has an end, as an interface's has
    path = "/x/" + text.replace("/", "")
    if not (whole := kept(quoting.unit, path)):
        return
    found = unit_dump(
        tmp_path,
        "srv-packages.mount",
        f"[Unit]\nRequiresMountsFor={quoting.unit_word(path)}\n"
        f"Before=ifup@{quoting.instance(text)}.service\n"
        f"[Mount]\nWhat={whole}\nWhere=/srv/packages\n",
    )
    assert found["What"] == [path]
    assert path in found["RequiresMountsFor"]
    escaped = run("systemd-escape", "--", text).rstrip("\n")
    assert quoting.instance(text) == escaped
    assert f"ifup@{escaped}.service" in found["Before"]


@few
@given(st.lists(LINES, max_size=4))
@example([HOSTILE])
def test_grub(tmp_path: Path, words: list[str]) -> None:
    menu = tmp_path / "grub.cfg"
    menu.write_text(f"menuentry 'a' {{\n\tmultiboot2 /xen.gz {quoting.grub(words)}\n}}\n")
    run("grub-script-check", str(menu))
    # its single quotes are a shell's
    assert shlex.split(quoting.grub(words)) == words


@few
@given(LINES)
@example(HOSTILE)
def test_ini(text: str) -> None:
    if quoted := kept(quoting.ini, text):
        reader = configparser.ConfigParser()
        reader.read_string(f"[a]\nkey = {quoted}\n")
        assert reader["a"]["key"] == text


@few
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_xl(text: str) -> None:
    found = assignments(f"a = {quoting.xl(text)}\nb = {quoting.xl_list([text, 'c'])}\n")
    assert found == {"a": text, "b": [text, "c"]}


# -- each rendered file of a site that is odd, but legal

NAMES = st.text("ab9-", min_size=1, max_size=8).map(lambda text: f"x{text}x")
PATHS = st.text("aZ9._+@-", min_size=1, max_size=8).map(lambda text: f"/mnt/{text}x")
WORDS = st.lists(st.text("aZ9._,:;=/@%+~^!*#[]-", min_size=1, max_size=9), max_size=4).map(" ".join)
DEVICES = st.text("aZ9._-", min_size=1, max_size=9).map(lambda text: f"x{text}y")


@st.composite
def sites(draw: st.DrawFn) -> Parameters:
    uplink, bridge, lan_bridge = draw(st.lists(DEVICES, min_size=3, max_size=3, unique=True))
    values: dict[str, Any] = {
        "site": "site-of-its-own",
        "hostname": "h-" + draw(NAMES),
        "domain": draw(NAMES) + ".example",
        "share": draw(PATHS),
        "uplink": uplink,
        "bridge": bridge,
        "lan_bridge": lan_bridge,
        "lan_interface": draw(DEVICES)[:8] + "7",
        "xen_options": draw(WORDS),
        "dom0_options": draw(WORDS),
        "domu_options": draw(WORDS),
    }
    return lab_site(**values)


def texts(*resources: Any) -> dict[str, str]:
    return {r.path: r.text() for r in resources if isinstance(r, File)}


@few
@given(sites())
def test_grub_s_files(tmp_path: Path, site: Parameters) -> None:
    entry = XenEntry("6.1.0+x", site.dom0_mem_mib, site.xen_options, site.dom0_options)
    found = texts(*Grub2().entry(entry))
    library = "make_system_path_relative_to_its_root() { echo /; }"
    (tmp_path / "grub-mkconfig_lib").write_text(library)
    environment = {
        "pkgdatadir": str(tmp_path),
        "GRUB_DEVICE_PARTUUID": "8a2c-01",
        "GRUB_DEVICE_BOOT_UUID": "a567",
        "PATH": "/usr/bin:/bin",
    }
    menu = tmp_path / "grub.cfg"
    menu.write_text(run("sh", "-c", found["/etc/grub.d/08_xenlab"], env=environment))
    run("grub-script-check", str(menu))
    lines = [shlex.split(line) for line in menu.read_text().splitlines() if line[0] == "\t"]
    assert lines[1][3:] == entry.xen_words
    assert lines[2][5:] == site.dom0_options.split()
    defaults = found["/etc/default/grub.d/xenlab.cfg"]
    run("sh", "-euc", defaults)


@few
@given(sites())
def test_xl_s_files(site: Parameters) -> None:
    domain = DomainSpec(
        name="web",
        kernel="/xenboot/a",
        cmdline=site.domu_options,
        memory_mib=64,
        disks=(Disk("/dev/disk/by-id/x", "xvda1"),),
        vifs=(Vif("00:16:3e:00:00:01", site.bridge),),
        options=(("extra", site.domu_options),),
    )
    found = assignments(xl_config(domain))
    assert found["cmdline"] == found["extra"] == site.domu_options
    assert found["vif"] == [f"mac=00:16:3e:00:00:01,bridge={site.bridge}"]
    added = Xl().extended("web", "13", vifs=domain.vifs, cmdline="a " + site.domu_options)
    assert isinstance(added, DomainAddition)
    plain = re.sub(r"^(\w+) \+=", r"\1 =", added.text, flags=re.MULTILINE)
    assert assignments(plain)["cmdline"] == " a " + site.domu_options


@few
@given(sites())
def test_files_of_the_network(tmp_path: Path, site: Parameters) -> None:
    address, gateway = site.address, site.gateway
    found = texts(
        *Ifupdown().beside_bridge(site.uplink, address, gateway, site.bridge),
        *Ifupdown().lan(site.lan_interface, site.lan_address),
        configuration.lan_settings(site),
    )
    own = next(text for path, text in found.items() if path.endswith("xenlab-uplink"))
    lan = next(text for path, text in found.items() if path.endswith("xenlab-lan"))
    stanzas = next(text for path, text in found.items() if path.endswith("d/xenlab-lan"))
    place = tmp_path / "interfaces"
    place.write_text(own + stanzas)
    for name, wanted in ((site.uplink, address), (site.lan_interface, site.lan_address)):
        shown = run(str(IFQUERY), "-i", str(place), name)
        assert f"address: {wanted.partition('/')[0]}\n" in shown
    assert lan
    script = f'{found["/etc/default/xenlab-lan"]}printf "%s " "$BRIDGE" "$INTERFACE"'
    assert run("sh", "-euc", script).split() == [site.lan_bridge, site.lan_interface]


@few
@given(sites())
def test_files_of_a_guest(tmp_path: Path, site: Parameters) -> None:
    own = GuestSettings(
        name=site.domains[0].name,
        domain=site.domain,
        address=site.domains[0].address,
        gateway=site.gateway,
        nameserver=site.nameserver,
        dom0=site.hostname,
        dom0_address=site.address,
    )
    found = {file.path: file.text for file in DebianGuest().files(own)}
    place = tmp_path / "interfaces"
    place.write_text(found["/etc/network/interfaces"].partition("\n")[2])
    assert f"gateway: {site.gateway}\n" in run(str(IFQUERY), "-i", str(place), "eth0")
    hosts = [line.split() for line in found["/etc/hosts"].splitlines()]
    assert ["10.0.2.15", f"{site.hostname}.{site.domain}", site.hostname] in hosts
    (tmp_path / "fstab").write_text(
        found["/etc/fstab"] + NfsMount(f"10.0.0.1:{site.share}", site.share, "ro").line + "\n"
    )
    tab = run("findmnt", "--fstab", "--tab-file", str(tmp_path / "fstab"), "-J", "-o", "TARGET")
    assert [row["target"] for row in json.loads(tab)["filesystems"]] == ["/", "none", site.share]


@few
@given(sites())
def test_files_of_the_share(tmp_path: Path, site: Parameters) -> None:
    rows = texts(disk.fstab_file(site, defaultdict(lambda: "uuid")))["/etc/fstab"]
    (tmp_path / "fstab").write_text(rows)
    tab = run("findmnt", "--fstab", "--tab-file", str(tmp_path / "fstab"), "-J", "-o", "TARGET")
    assert site.share in [row["target"] for row in json.loads(tab)["filesystems"]]
    chapter = cast(Chapter, SimpleNamespace(site=site, name="14_shared_filesystems"))
    exports = exports_file(chapter, site.share, READ_ONLY).text()
    assert exports.startswith("# written by xenlab, chapter 14\n")
    assert exported(exports) == [site.share]
    assert [line.split()[-1].partition("(")[2][:3] for line in exports.splitlines()[1:]] == ["ro,"]


def test_a_kernel_s_name_is_no_code_in_the_menu() -> None:
    """It comes from CONFIG_LOCALVERSION, which a site may set to any text."""
    entry = XenEntry("6.1'$(id)", 1024)
    script = next(r for r in Grub2().entry(entry) if getattr(r, "path", "").endswith("08_xenlab"))
    assert isinstance(script, File)
    with pytest.raises(BadInput, match="no plain word"):
        script.text()
