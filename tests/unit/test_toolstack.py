"""The toolstack: xl's output as tables, a domain as a file that xl can read."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.off_xen import ROOT, UNPACKED, OffXen
from tests.sites import lab_site

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.guests import _otherwise, domain_table
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.running import Values
from xenlab.platform.xl import (
    Disk,
    DomainSpec,
    EitherConfig,
    Vif,
    Xl,
    advised_type,
    parse_help,
    toolstack,
    xl_config,
)
from xenlab.quoting import xl
from xenlab.resources.xen import DomainConfig, parse_list
from xenlab.site.types import XL_WRITTEN, xl_keys
from xenlab.transport.local import Local

HOST = Host(Local())
RECORDED = Path(__file__).parents[1] / "recorded" / "xl"

SPEC = DomainSpec(
    name="domu1",
    kernel="/xenboot/vmlinuz-domU",
    cmdline="root=/dev/xvda1 ro console=hvc0 net.ifnames=0",
    memory_mib=320,
    disks=(
        Disk("/dev/disk/by-partlabel/domu1", "xvda1"),
        Disk("/mnt/domuswap/domu1.swap", "xvda2", writable=False),
    ),
    vifs=(Vif("00:16:3e:66:01:01", "xenbr0"),),
)


@pytest.fixture(scope="module")
def off_xen(tmp_path_factory: pytest.TempPathFactory) -> OffXen:
    """The real xl, which needs no Xen here."""
    return OffXen(tmp_path_factory.mktemp("xl"))


names = st.from_regex(r"[A-Za-z0-9(][A-Za-z0-9() .-]{0,38}[A-Za-z0-9)]", fullmatch=True)


def test_list_as_recorded() -> None:
    found = parse_list((RECORDED / "list.txt").read_text())
    assert [one.name for one in found] == ["Domain-0", "domu1", "domu2", "domu3"]
    assert len({one.id for one in found}) == 4
    assert all(one.memory_mib > 0 and one.runs for one in found)


def test_a_domain_that_runs_with_something_else_is_in_the_table() -> None:
    assert Xl().values(HOST) == {}
    running = {"domu1": Values(memory_mib=320, maxmem_mib=320)}
    first, _, third = lab_site().domains
    more = [first.model_copy(update=change) for change in ({"vcpus": 2}, {"maxmem_mib": 640})]
    assert [_otherwise(each, running) for each in (first, third, *more)] == [
        "",
        "",
        "vcpus 1, up to 320 MiB",
        "vcpus 1, up to 320 MiB",
    ]


def test_a_paused_and_a_crashed_domain_as_recorded() -> None:
    found = parse_list((RECORDED / "list-standing.txt").read_text())
    assert {one.name: one.state for one in found} == {
        "Domain-0": "running",
        "domu1": "paused",
        "domu2": "crashed",
    }


LETTERS = {
    "r-----": "running",
    "-b----": "running",
    "------": "running",
    "--p---": "paused",
    "---s--": "shut down",
    "----c-": "crashed",
    "---sc-": "crashed",
    "--psc-": "crashed",
    "-----d": "dying",
    "---scd": "dying",
}


@given(
    st.lists(
        st.tuples(
            names,
            st.integers(0, 65535),
            st.integers(0, 10**7),
            st.integers(1, 999),
            st.sampled_from(sorted(LETTERS)),
            st.floats(0, 10**7).map(lambda s: round(s, 1)),
        ),
        max_size=5,
    )
)
def test_every_row_that_xl_prints_is_read(
    rows: list[tuple[str, int, int, int, str, float]],
) -> None:
    printed = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
    for name, number, memory, vcpus, state, seconds in rows:
        printed += f"{name:<40} {number:5d} {memory:5d} {vcpus:5d}     {state}  {seconds:8.1f}\n"
    wanted = [(*row[:4], LETTERS[row[4]], row[5]) for row in rows]
    assert [astuple(one) for one in parse_list(printed)] == wanted


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_list(text)


def test_a_text_without_domains_lists_none() -> None:
    assert parse_list("rubbish\n") == []


def test_config_says_what_the_site_wants() -> None:
    values = dict(re.findall(r"^(\w+)\s*= (.*)$", xl_config(SPEC), re.MULTILINE))
    assert values["name"] == '"domu1"'
    assert values["type"] == '"pv"'
    assert values["memory"] == "320"
    assert values["disk"] == (
        '[ "/dev/disk/by-partlabel/domu1,raw,xvda1,rw", "/mnt/domuswap/domu1.swap,raw,xvda2,ro" ]'
    )
    assert values["vif"] == '[ "mac=00:16:3e:66:01:01,bridge=xenbr0" ]'
    assert (values["on_poweroff"], values["on_reboot"], values["on_crash"]) == (
        '"destroy"',
        '"restart"',
        '"preserve"',
    )


def test_what_xl_itself_reads_in_a_file(off_xen: OffXen) -> None:
    found = off_xen.read(xl_config(SPEC))
    built = found["b_info"]
    assert (found["c_info"]["name"], found["c_info"]["type"]) == ("domu1", "pv")
    assert (built["kernel"], built["cmdline"]) == (SPEC.kernel, SPEC.cmdline)
    assert (built["target_memkb"], built["max_memkb"]) == (320 << 10, 320 << 10)
    assert built["max_vcpus"] == 1
    assert [(disk["vdev"], "readwrite" in disk) for disk in found["disks"]] == [
        ("xvda1", True),
        ("xvda2", False),
    ]
    assert found["nics"] == [{"devid": 0, "mac": "00:16:3e:66:01:01", "bridge": "xenbr0"}]


def test_a_kernel_with_modules_has_its_initrd(off_xen: OffXen) -> None:
    text = xl_config(replace(SPEC, ramdisk="/xenboot/initrd-domU"))
    assert off_xen.read(text)["b_info"]["ramdisk"] == "/xenboot/initrd-domU"
    plain = xl_config(SPEC)
    assert set(text.splitlines()) - set(plain.splitlines()) == {'ramdisk = "/xenboot/initrd-domU"'}


def test_processors_and_the_memory_to_grow_to(off_xen: OffXen) -> None:
    text = xl_config(replace(SPEC, vcpus=3, maxmem_mib=512))
    built = off_xen.read(text)["b_info"]
    assert built["avail_vcpus"] == [0, 1, 2]
    assert (built["target_memkb"], built["max_memkb"]) == (320 << 10, 512 << 10)
    # a file that says nothing of it is the one that was written before there was such a key
    plain = xl_config(SPEC)
    assert xl_config(replace(SPEC, maxmem_mib=320)) == plain
    assert set(text.splitlines()) - set(plain.splitlines()) == {"vcpus   = 3", "maxmem  = 512"}


def test_xl_refuses_what_it_does_not_know(off_xen: OffXen) -> None:
    """So that a file that it accepts says something."""
    done = off_xen.create(xl_config(SPEC).replace('"pv"', '"pvx"'))
    assert done.returncode != 0
    assert "Invalid domain type" in done.stderr


@settings(max_examples=20)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_string_is_what_xl_reads(off_xen: OffXen, text: str) -> None:
    found = off_xen.read(xl_config(replace(SPEC, cmdline=f"ro {text}")))
    assert found["b_info"]["cmdline"] == f"ro {text}"


def test_options_of_a_site_come_last() -> None:
    spec = DomainSpec("d", "/k", "", 64, (), (), options=(("tsc_mode", "native"),))
    assert xl_config(spec).endswith('tsc_mode = "native"\n')


def test_further_keys_are_what_xl_reads(off_xen: OffXen) -> None:
    """A text, a number, a list, and a number below 0 as the text that it has to be."""
    options = (
        ("tsc_mode", "native"),
        ("cpu_weight", 512),
        ("cpus", ["1", "2-3"]),
        ("rtc_timeoffset", "-60"),
    )
    text = xl_config(replace(SPEC, vcpus=2, options=options))
    built = off_xen.read(text)["b_info"]
    assert (built["tsc_mode"], built["sched_params"]["weight"]) == ("native", 512)
    assert built["vcpu_hard_affinity"] == [[1], [2, 3]]
    # in 32 bits, as libxl keeps it
    assert built["rtc_timeoffset"] == 2**32 - 60
    assert off_xen.create(text.replace('"-60"', "-60")).returncode != 0


def test_the_keys_are_those_of_the_manual_page() -> None:
    """A newer Xen's page may have keys more, which the file then lacks."""
    (page,) = UNPACKED.glob("usr/share/man/man5/xl.cfg.5.gz")
    command = [sys.executable, str(ROOT / "scripts/xl_keys.py"), str(page)]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {line for line in made.splitlines() if line[0] != "#"} <= xl_keys()
    kept = (ROOT / "lib/xenlab/data/xl.cfg.keys").read_text()
    assert made == kept or made.splitlines()[0] != kept.splitlines()[0]


def test_nothing_that_a_site_adds_is_there_already() -> None:
    text = xl_config(replace(SPEC, maxmem_mib=512))
    written = set(re.findall(r"^(\w+) *=", text, re.MULTILINE))
    assert written <= {*XL_WRITTEN} <= xl_keys()


@pytest.mark.parametrize("path", ["/dev/a,b", "/dev/a b", "relative", "", "/dev/a\nb", "/a=b"])
def test_a_path_that_xl_would_take_apart_is_refused(path: str) -> None:
    with pytest.raises(BadInput):
        xl_config(DomainSpec("d", "/k", "", 64, (Disk(path, "xvda1"),), ()))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_string_comes_back_as_it_was(text: str) -> None:
    quoted = xl(text)
    assert quoted[0] == quoted[-1] == '"'
    assert re.sub(r"\\(.)", r"\1", quoted[1:-1]) == text
    assert not re.search(r'(?<!\\)(\\\\)*"', quoted[1:-1])


@pytest.mark.parametrize("text", ["a\nb", "ä", "\t"])
def test_a_string_that_is_no_plain_line_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        xl(text)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("virt_caps              : pv hvm hvm_directio hap", ("pvh", "Xen reports hvm")),
        ("virt_caps              : pv\nhvm : no", ("pv", "Xen reports no hvm")),
        ("flags\t\t: fpu vmx lm", ("pvh", "the processor has VMX")),
        ("flags\t\t: fpu lm hvm_like", ("pv", "the processor has neither VMX nor SVM")),
        ("", ("pv", "the processor has neither VMX nor SVM")),
    ],
)
def test_the_type_that_the_machine_advises(said: str, wanted: tuple[str, str]) -> None:
    assert parse_help(f"nr_cpus                : 4\n{said}\n") == wanted


def test_a_guest_s_type_is_that_of_this_machine() -> None:
    """Before Xen runs, by the processor's flags."""
    flags = re.search(r"^flags.*", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    helped = {"vmx", "svm"} & set(flags[0].split() if flags else ())
    assert advised_type(HOST)[0] == ("pvh" if helped else "pv")
    found = Xl().configured(replace(SPEC, type="auto")).probe(HOST)
    assert found is not None
    assert f'+type    = "{"pvh" if helped else "pv"}"' in found.diff


def test_the_table_says_each_type_and_why() -> None:
    first, *others = [domain.model_dump() for domain in lab_site().domains]
    changed = {"type": "auto", "vcpus": 2, "maxmem_mib": 512, "extra": {"cpu_weight": 512}}
    site = lab_site(domains=[first | changed, *others])
    chapter = cast(Chapter, SimpleNamespace(site=site, toolstack=Xl(), target=HOST))
    rows = domain_table(chapter).to_dict("records")
    kind, why = advised_type(HOST)
    names = ("type", "memory (MiB)", "vcpus", "further keys")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (f"{kind} (auto: {why})", "320, up to 512", 2, "cpu_weight"),
        ("pv", 320, 1, ""),
        ("pv", 320, 1, ""),
    ]
    plain = SimpleNamespace(site=lab_site(), toolstack=Xl(), target=HOST)
    table = domain_table(cast(Chapter, plain))
    assert "further keys" not in table.columns
    assert set(table["type"]) == {"pv"}


@pytest.mark.parametrize(("caps", "wanted"), [("pv hvm hap", "pvh"), ("pv", "pv")])
def test_typed_by_hand_xen_decides(tmp_path: Path, caps: str, wanted: str, off_xen: OffXen) -> None:
    xl = tmp_path / "xl"
    xl.write_text(f"#!/bin/sh\n[ $1 != info ] || echo 'virt_caps              : {caps}'\n")
    xl.chmod(0o755)
    file = tmp_path / "domu1.cfg"
    texts = {each: xl_config(replace(SPEC, type=each)) for each in ("pv", "pvh")}
    config = EitherConfig(*(DomainConfig(str(file), text) for text in texts.values()))
    script = "\n".join(command.by_hand() for command in config.commands())
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["sh", "-eu"], input=script, text=True, check=True, env={"PATH": path})
    assert file.read_text() == texts[wanted]
    assert off_xen.read(file.read_text())["c_info"]["type"] == wanted


def test_further_disks_and_interfaces_are_as_xl_reads_them(off_xen: OffXen) -> None:
    spec = replace(
        SPEC,
        disks=(*SPEC.disks, Disk("/dev/disk/by-id/ata-A_1", "xvdb", writable=False)),
        vifs=(*SPEC.vifs, Vif("00:16:3e:00:01:01", "xenbr2")),
    )
    found = off_xen.read(xl_config(spec))
    disk, nic = found["disks"][-1], found["nics"][-1]
    assert (disk["pdev_path"], disk["vdev"]) == ("/dev/disk/by-id/ata-A_1", "xvdb")
    assert "readwrite" not in disk
    assert (nic["mac"], nic["bridge"]) == ("00:16:3e:00:01:01", "xenbr2")


def test_each_platform_has_its_answer() -> None:
    assert toolstack("debian").config_path("domu1") == "/etc/xen/domu1.cfg"
    with pytest.raises(BadInput, match="gentoo-2006"):
        toolstack("gentoo-2006")
