"""Planted secrets occur nowhere in what is kept: run folder, notebooks, pages."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.namespace import Namespace
from tests.sites import lab_site
from tests.ssh.conftest import wait_until
from tests.ssh.small import Site

from xenlab.chapter.opening import open_chapter
from xenlab.chapter.recorder import discover_secrets
from xenlab.cli.lab import copy_console
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.masking import Secret
from xenlab.panel.domains import CONSOLE_BYTES, DomainPanel, console_end
from xenlab.panel.site import SiteFile
from xenlab.resources.xen import log_path
from xenlab.runs import folder as runs
from xenlab_lab.lab import Lab

TOKEN = "tok-5ae1c9$'\"x"
PASSWORD = "correct horse battery"
FOUND = "•••"


def kept(site: Site) -> dict[str, str]:
    """All that is kept of all runs, by file."""
    return {
        str(path): path.read_text(errors="replace")
        for path in site.runs.rglob("*")
        if path.is_file()
    }


def test_planted_secrets_are_nowhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_API_TOKEN", TOKEN)
    monkeypatch.setenv("IPMI_PASSWORD", PASSWORD)
    key = site.sshd.identity
    site.write(ssh={"host": site.sshd.alias, "config": str(site.sshd.config), "identity": str(key)})
    handed = 'Command.script(\'echo "told: $1"\', Secret(os.environ["LAB_API_TOKEN"]))'
    halves = PASSWORD[: len(PASSWORD) // 2], PASSWORD[len(PASSWORD) // 2 :]
    split = f'Command.script(\'printf %s "$1"; sleep 0.5; printf %s "$2"\', *{halves!r})'
    site.chapter(
        "01_first",
        "import os\nfrom xenlab.masking import Secret",
        f'chapter.run("01.1 Hand one over", Told({handed}), on=chapter.host)',
        f'chapter.run("01.2 In two pieces", Told({split}), on=chapter.host)',
        f'chapter.run("01.3 A key", Told(Command.argv("cat", {str(key)!r})), on=chapter.host)',
        'chapter.run("01.4 Fail with one", Told(Command.script('
        '\'echo "$1" >&2; exit 3\', Secret(os.environ["LAB_API_TOKEN"]))), on=chapter.host)',
    )
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 1
    steps = dict(site.steps())
    assert steps == {"01.1": "changed", "01.2": "changed", "01.3": "changed", "01.4": "failed"}
    files = kept(site) | {"the terminal": done.stdout + done.stderr}
    assert any(name.endswith("report.html") for name in files)
    assert any(f"told: {FOUND}" in text for text in files.values())
    lines = [line for line in key.read_text().splitlines() if not line.startswith("-----")]
    assert len(lines) > 3
    for secret in (TOKEN, PASSWORD, *lines):
        assert [name for name, text in files.items() if secret in text] == []


def test_declared_secrets_are_nowhere_and_their_references_are_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = ["first-line-of-it", "second/line of+it"]
    place = site.folder / "vault"
    place.write_text("\n".join(several) + "\n")
    monkeypatch.setenv("PLAIN_NAME", TOKEN)
    references = [{"env": "PLAIN_NAME"}, {"file": str(place)}]
    site.write(secrets=references)
    words = [TOKEN, *several]
    forms = [form for word in words for form in (word, quote(word, safe=""), shlex.quote(word))]
    encoded = [
        encode(head + word.encode()).decode()
        for word in words
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
        for head in (b"", b"a", b"ab")
    ]
    tell = f'Command.script(\'printf "%s\\n" "$@"; exit 3\', *{[*forms, *encoded]!r})'
    site.chapter("01_first", f'chapter.run("01.1 Tell", Told({tell}), on=chapter.host)')
    done = site.xenlab("run", "-f", "site.yaml")
    assert dict(site.steps()) == {"01.1": "failed"}
    files = kept(site) | {"the terminal": done.stdout + done.stderr}
    # the chapter's own cell holds the words, so that its source in the notebook does too
    source = {name for name in files if name.endswith(".ipynb")}
    for word in [*forms, *(text.rstrip("=")[4:-2] for text in encoded)]:
        assert [name for name, text in files.items() if word in text and name not in source] == []
    assert runs.read(site.run_folders()[-1])["parameters"]["secrets"] == [
        {"env": "PLAIN_NAME", "file": ""},
        {"env": "", "file": str(place)},
    ]


def test_declared_secrets_are_nowhere_in_what_a_console_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIN_NAME", PASSWORD)
    monkeypatch.setenv("XENLAB_CACHE", str(tmp_path / "cache"))
    place = lab_site(secrets=[{"env": "PLAIN_NAME"}])
    log = Lab(place.lab).status().console_log
    log.parent.mkdir(parents=True)
    log.write_text(f"login: {PASSWORD}\r\n")
    copy_console(place, tmp_path)
    assert (tmp_path / "console" / "dom0.log").read_bytes() == f"login: {FOUND}\r\n".encode()
    transport = Namespace()
    try:
        host = Host(transport)
        host.run("mount -t tmpfs none /var/log")
        secrets = discover_secrets("", place.secrets)
        for size in range(CONSOLE_BYTES - len(PASSWORD), CONSOLE_BYTES + 1):
            # coloured inside the secret; and the look begins in the middle of another
            text = f"{PASSWORD}\n\x1b[1mcorrect \x1b[0mhorse battery\n".ljust(size - 1, ".") + "\n"
            host.write(log_path("domu1"), text)
            shown = console_end(host, "domu1", secrets)
            assert FOUND in shown and "battery" not in shown
    finally:
        transport.end()


def test_declared_secrets_are_nowhere_in_what_the_panel_shows(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIN_NAME", "No such file")
    site.write(secrets=[{"env": "PLAIN_NAME"}])
    panel = DomainPanel(SiteFile(site.file))
    panel.watch.value = True
    # there is no dom0, as chroot says
    wait_until(lambda: "xl list" in panel.message.value, 60)
    assert f": {FOUND} or directory" in panel.message.value
    panel.close()
    assert panel.wait_closed(60)


def test_credentials_in_a_url_are_nowhere_and_yet_in_the_file(site: Site) -> None:
    hosts = site.folder / "sources.list"
    url = '"http://me:" + "pw-of-mirror" + "@mirror.example/"'
    site.chapter(
        "01_first",
        "import pandas as pd",
        f"url = {url}",
        f'written = Command.script("echo deb $1 > $2", url, {str(hosts)!r})',
        'chapter.run("01.1 Write it", Told(written), on=chapter.host)',
        'chapter.facts("01.2 A table", pd.DataFrame([{"from": url}]))',
        f'chapter.run("01.3 Show it", Told(Command.argv("cat", {str(hosts)!r})), on=chapter.host)',
    )
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stderr
    assert hosts.read_text() == "deb http://me:pw-of-mirror@mirror.example/\n"
    files = kept(site) | {"the terminal": done.stdout + done.stderr}
    assert [name for name, text in files.items() if "me:pw-of-mirror@" in text] == []
    assert any(f"http://me:{FOUND}@mirror.example/" in text for text in files.values())


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (
            {"env": "NO_SUCH_VARIABLE"},
            "mask the secret in $NO_SUCH_VARIABLE: because the environment has",
        ),
        ({"env": "SHORT"}, "mask the secret in $SHORT: because it has less than 6 characters"),
        ({"file": "/no/such/file"}, "mask the secret in /no/such/file: because No such file"),
        ({"env": PASSWORD}, "secrets[0] must be the name of an environment variable"),
        ({"file": PASSWORD}, "secrets[0] must be a path"),
        ({"value": PASSWORD}, "secrets[0] must be {env: NAME} or {file: PATH}"),
        (PASSWORD, "secrets[0] must be {env: NAME} or {file: PATH}"),
        ({}, "secrets[0] must name one thing"),
    ],
)
def test_a_secret_that_cannot_be_read_is_refused_before_anything_is_touched(
    site: Site, monkeypatch: pytest.MonkeyPatch, reference: object, said: str
) -> None:
    monkeypatch.setenv("SHORT", "12345")
    site.chapter("01_first", site.made("01.1"))
    site.write(secrets=[reference])
    for command in ("run", "plan"):
        done = site.xenlab(command, "-f", "site.yaml")
        assert done.returncode == 2
        assert said in done.stderr
        assert PASSWORD not in done.stdout + done.stderr
    assert not site.runs.exists()


def test_a_chapter_that_is_opened_alone_reads_them_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_RUNS", str(site.runs))
    values = {"ssh": {"host": site.sshd.alias, "config": str(site.sshd.config)}}
    with pytest.raises(BadInput, match=r"cannot mask the secret in \$NO_SUCH_VARIABLE"):
        open_chapter("01_first", values | {"secrets": [{"env": "NO_SUCH_VARIABLE"}]})
    assert not site.runs.exists()


@pytest.mark.parametrize(
    "name",
    ["API_KEY", "GH_PAT", "IPMI_PASS", "DB_PWD", "sshpass", "OPENAI_APIKEY", "WIFI_PSK",
     "AWS_SECRET_ACCESS_KEY", "CI_JOB_TOKEN", "DB_CREDENTIALS", "SIGNING_KEYS"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert discover_secrets("", (), {name: "abc-123-def"}) == (Secret("abc-123-def"),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY", "correcthorse"),
        ("DB_PWD", "/b3J0aHkK+aGk="),
        ("MYSQLPASS", "abcdefgh"),
        ("DBPWD", "abcdefgh"),
        ("NPM_AUTH", "abcdefgh"),
        ("SESSION_COOKIE", "abcdefgh"),
        ("DB_PASSWORT", "abcdefgh"),
    ],
)
def test_secrets_of_another_look(name: str, value: str) -> None:
    assert discover_secrets("", (), {name: value}) == (Secret(value),)


def test_a_proxy_without_a_scheme_has_credentials_too() -> None:
    assert discover_secrets("", (), {"https_proxy": "me:abcdefgh@proxy:3128"}) == (
        Secret("abcdefgh"),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PWD", "/home/person"),
        ("OLDPWD", "relative"),
        ("SSH_KEY", "~/.ssh/id_ed25519"),
        ("SIGNING_KEY", "/etc/keys/1"),
        ("COMPOSE_KEY", "Multi_key"),
        ("MINISIGN_PUBLIC_KEY", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0Q"),
        ("AWS_ACCESS_KEY_ID", "AKIA0123456789"),
        ("SSH_ASKPASS", "/usr/bin/ssh-askpass"),
        ("PATH", "/usr/bin:/bin"),
        ("COMPASS", "northwest"),
        ("SSH_AUTH_SOCK", "/tmp/agent.1"),
        ("AUTH_METHOD", "publickey"),
        ("SIGNING_KEY", "~/keys/1"),
    ],
)
def test_what_is_no_secret_is_not_blotted_out(name: str, value: str) -> None:
    assert discover_secrets("", (), {name: value}) == ()


def test_the_credentials_of_a_proxy_are_secrets_wherever_they_stand() -> None:
    found = discover_secrets("", (), {"http_proxy": "http://me:p%40ssword@proxy:3128/"})
    assert set(found) == {Secret("p%40ssword"), Secret("p@ssword")}


def test_a_password_in_a_parameters_file_is_refused_and_not_repeated(site: Site) -> None:
    site.chapter("01_first", site.made("01.1"))
    site.write(password=PASSWORD)
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 2
    assert "unknown parameter password" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert not site.runs.exists()


def test_what_is_known_to_be_secret(site: Site) -> None:
    environment = {
        "GITHUB_TOKEN": "abcdefgh",
        "DB_PASSWORD": "abcdefgh-longer",
        "SHORT_TOKEN": "abc",
        "PATH": "/usr/bin:/bin",
    }
    assert discover_secrets("", (), environment) == (Secret("abcdefgh-longer"), Secret("abcdefgh"))
    assert discover_secrets("/no/such/key", (), environment) == discover_secrets(
        "", (), environment
    )
    whole = discover_secrets(str(site.sshd.identity), (), {})
    assert all(not secret.value.startswith("-----") for secret in whole) and len(whole) > 3
