"""Power by a management controller, against the simulators that others test with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.management import (
    LOGIN,
    SYSTEM,
    Castle,
    Emulator,
    ipmi_simulated,
    redfish_emulated,
)
from tests.sites import lab_site

from xenlab.errors import BadInput, CommandFailed
from xenlab.host import Host
from xenlab.platform.power import Ipmi, Redfish, power
from xenlab.site.schema import RedfishService
from xenlab.transport.local import Local


def silent(what: str, done: float | None = None) -> None:
    """Nobody is told."""


@pytest.fixture
def ipmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Castle]:
    """A machine that is reached by the environment."""
    with ipmi_simulated(tmp_path) as castle:
        for name, value in castle.environment.items():
            monkeypatch.setenv(name, value)
        yield castle


def test_ipmi_boots_the_rescue_system_and_the_disk(ipmi: Castle) -> None:
    controller = Host(Local())
    own = power(lab_site(power="ipmi", ipmi_boot="cdrom", firmware="uefi"))
    assert isinstance(own, Ipmi)
    own.ready(controller)
    assert ipmi.told() == [], "a look has changed something"
    own.boot("rescue", controller, silent)
    # a cycle is off, and later on
    assert ipmi.told()[:2] == ["set boot cdrom", "set power 0"]
    own.boot("disk", controller, silent)
    # what the simulator calls the disk
    assert "set boot default" in ipmi.told()


def test_a_boot_device_that_ipmi_sim_refuses_leaves_the_power_alone(ipmi: Castle) -> None:
    with pytest.raises(CommandFailed, match="Set Chassis Boot Parameter 5 failed"):
        Ipmi("usb").boot("rescue", Host(Local()), silent)
    assert ipmi.told() == []


def test_a_login_that_ipmi_sim_refuses_is_said_before_anything_else(
    ipmi: Castle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPMI_PASSWORD", "another-word")
    own = power(lab_site(power="ipmi"))
    assert isinstance(own, Ipmi)
    with pytest.raises(BadInput, match="ipmitool said “Error: Unable to establish IPMI v2") as said:
        own.ready(Host(Local()))
    assert "IPMI_HOST, _USER and _PASSWORD" in str(said.value)


def test_ipmitool_s_own_words_do_not_name_the_controller(
    ipmi: Castle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPMI_HOST", "bmc.castle.invalid")
    own = power(lab_site(power="ipmi"))
    assert isinstance(own, Ipmi)
    (command, _) = own.commands("rescue")
    found = Host(Local()).run(command, check=False)
    assert "Address lookup for bmc.castle.invalid failed" in found.stderr
    with pytest.raises(CommandFailed, match="Address lookup for ••• failed") as said:
        own.boot("rescue", Host(Local()), silent)
    assert "bmc.castle" not in str(said.value)


@pytest.fixture
def redfish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """One that is reached by the environment."""
    with redfish_emulated(tmp_path) as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        yield emulator


def asked(redfish: Emulator, **service: object) -> Redfish:
    """What a site asks it by, that trusts its certificate if it does not say otherwise."""
    trusted = {"ca": redfish.ca} if not service.keys() & {"ca", "pin", "plain"} else {}
    values = {"system": SYSTEM, **trusted, **service}
    own = power(lab_site(power="redfish", firmware="uefi", redfish=values))
    assert isinstance(own, Redfish)
    return own


@pytest.mark.parametrize(("boot", "device"), [("pxe", "Pxe"), ("cdrom", "Cd"), ("usb", "Usb")])
def test_redfish_boots_the_rescue_system_once(redfish: Emulator, boot: str, device: str) -> None:
    own, said = asked(redfish, boot=boot), list[str]()
    own.boot("rescue", Host(Local()), lambda what, done=None: said.append(what))
    system = redfish.system()
    assert system["Boot"]["BootSourceOverrideTarget"] == device
    assert system["Boot"]["BootSourceOverrideMode"] == "UEFI"
    recorded = "\n".join([*said, *(each.text for each in own.commands("rescue"))])
    assert [value for value in (str(redfish.port), *LOGIN.values()) if value in recorded] == []


def test_redfish_boots_the_disk_by_a_reset(redfish: Emulator) -> None:
    asked(redfish).boot("disk", Host(Local()), silent)
    assert redfish.system()["Boot"]["BootSourceOverrideTarget"] == "Hdd"
    # it is off for some seconds only
    assert redfish.told == ["ForceRestart"]


def test_a_redfish_service_is_asked_for_uefi_where_the_site_boots_by_it() -> None:
    for efi in (True, False):
        (device, _) = Redfish(RedfishService(), efi=efi).texts("disk")
        assert ('"BootSourceOverrideMode": "UEFI"' in device) == efi
        assert '"BootSourceOverrideEnabled": "Once"' in device


def test_a_look_at_a_redfish_service_changes_nothing(redfish: Emulator) -> None:
    before = redfish.system()
    asked(redfish, boot="http").ready(Host(Local()))
    assert redfish.system() == before
    with pytest.raises(BadInput, match="boots from Pxe, Cd, Hdd, UefiHttp, not from Usb"):
        asked(redfish, boot="usb").ready(Host(Local()))


def test_a_redfish_service_is_known_by_its_certificate_or_its_key(redfish: Emulator) -> None:
    for known in ({"ca": redfish.ca}, {"pin": redfish.pin}):
        asked(redfish, **known).ready(Host(Local()))
    other = "sha256//r/mIkG3eEpVdm+u/ko/cwxzOMo1bk4TyHIlByibiA5E="
    for unknown, said in (
        ({"ca": ""}, "curl said “curl: .*certificate.*Try: .* redfish: ca or pin"),
        ({"pin": other}, "public key does not match pinned public key"),
        ({"ca": redfish.ca, "pin": other}, "public key does not match pinned public key"),
    ):
        with pytest.raises(BadInput, match=f"(?s){said}"):
            asked(redfish, **unknown).ready(Host(Local()))


def test_a_login_that_a_redfish_service_refuses_is_said(
    redfish: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = redfish.system()
    monkeypatch.setenv("REDFISH_PASSWORD", "another-word")
    with pytest.raises(BadInput, match="curl said “.*error: 401”\nTry: compare REDFISH_HOST"):
        asked(redfish).ready(Host(Local()))
    with pytest.raises(CommandFailed, match="401"):
        asked(redfish).boot("rescue", Host(Local()), silent)
    assert redfish.system() == before


def test_curl_s_own_words_do_not_name_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "bmc.castle.invalid:8443", **LOGIN}.items():
        monkeypatch.setenv(f"REDFISH_{name}", value)
    own = power(lab_site(power="redfish", redfish={"plain": True}))
    (command, _) = own.commands("rescue")
    found = Host(Local()).run(command, check=False)
    assert "Could not resolve host: bmc.castle.invalid" in found.stderr
    with pytest.raises(CommandFailed, match="Could not resolve host: •••") as said:
        own.boot("rescue", Host(Local()), silent)
    assert "bmc.castle" not in str(said.value)


def test_an_answer_that_is_no_redfish_system_s_is_said() -> None:
    for answer in ("<html>", "[]", '{"Name": "castle"}'):
        with pytest.raises(BadInput, match="what answers is no Redfish system"):
            Redfish(RedfishService()).judge(answer)
    Redfish(RedfishService()).judge('{"Boot": {}}')
