"""What a lab's domains get through the relay, and what they do not: the program as QEMU runs it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.namespace import Namespace
from tests.relayed import PROGRAM, relayed
from tests.system_copy import SYSTEM_COPY

from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab_lab import mirrors, relay

SECONDS = 60.0
BIG = os.urandom(3_000_000)
LOGIN = f"Basic {base64.b64encode(b'me:secret').decode()}"


class Mirror(BaseHTTPRequestHandler):
    """A mirror, or a proxy, that remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        path = urlsplit(self.path).path
        if self.server.login and self.headers["Authorization"] != self.server.login:
            self.send_error(401)
        elif path.endswith("/pieces"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")
        elif path.endswith("/to-the-end"):
            self.close_connection = True
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"first" + b"second")
        elif path.endswith("/cut"):
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"first")
        else:
            body = self.server.content(path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write((body or b"") if self.command == "GET" else b"")

    do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        self.close_connection = True
        host, _, port = self.path.rpartition(":")
        self.send_response(200)
        self.end_headers()
        with socket.create_connection((host, int(port))) as other:
            other.sendall(self.connection.recv(100))
            self.connection.sendall(other.recv(100))

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A mirror on a port of its own; without ``files`` it has one that says which was asked for."""

    daemon_threads = True

    def __init__(self, login: str = "", files: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Mirror)
        self.login, self.files = login, files
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def content(self, path: str) -> bytes | None:
        if self.files is None:
            return BIG if path.endswith("/big") else f"this is {path}".encode()
        file = self.files / path.removeprefix("/debian/")
        return file.read_bytes() if file.is_file() else None


@pytest.fixture
def started() -> Iterator[Callable[[Server], Server]]:
    with ExitStack() as stack:

        def start(server: Server) -> Server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield start


def settings(folder: Path, *urls: str, options: str = "", logins: str = "") -> Path:
    file = folder / mirrors.SETTINGS
    file.write_text(json.dumps(mirrors.mirrors(urls, options, logins, {})))
    return file


@contextmanager
def connected(file: Path) -> Iterator[socket.socket]:
    """A domain's end of a connection to the relay, as QEMU makes one (libslirp, fork_exec)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=SECONDS)
        theirs, _ = listener.accept()
    words, end = [sys.executable, "-I", "-S", str(PROGRAM), file.name], theirs.fileno()
    with subprocess.Popen(words, cwd=file.parent, stdin=end, stdout=end, stderr=end) as child:
        theirs.close()
        try:
            with ours:
                yield ours
            assert child.wait(SECONDS) == 0
        finally:
            child.kill()


def ask(file: Path, *requests: str) -> str:
    """What comes back for requests that are sent in one go, to the end of the connection."""
    with connected(file) as domain:
        domain.sendall("".join(f"{each}\r\n\r\n" for each in requests).encode())
        domain.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: domain.recv(65536), b"")).decode()


def test_requests_in_a_row_over_one_connection(
    tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    mirror = started(Server())
    file = settings(tmp_path, f"{mirror.url}/debian")
    with connected(file) as domain:
        host, port = domain.getpeername()
        client = HTTPConnection(host, port)
        client.sock = domain
        for path, body in (("big", BIG), ("a", b"this is /debian/a"), ("pieces", b"firstsecond")):
            client.request("GET", f"{mirror.url}/debian/{path}", headers={"Range": "bytes=0-"})
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, body)
        client.request("HEAD", f"{mirror.url}/debian/big")
        answer = client.getresponse()
        assert (answer.headers["Content-Length"], answer.read()) == (str(len(BIG)), b"")
        client.request("GET", f"{mirror.url}/debian/to-the-end")
        assert client.getresponse().read() == b"firstsecond"
        client.close()
    assert mirror.asked[0][1] == "/debian/big"
    assert mirror.asked[0][2]["Host"] == f"127.0.0.1:{mirror.server_port}"
    assert mirror.asked[0][2]["Range"] == "bytes=0-"


def test_requests_that_do_not_wait_for_an_answer(
    tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    mirror = started(Server())
    file = settings(tmp_path, f"{mirror.url}/debian/")
    words = [f"GET {mirror.url}/debian/{n} HTTP/1.1\r\nHost: other.example" for n in range(9)]
    said = ask(file, *words)
    assert [f"this is /debian/{n}" in said for n in range(9)] == [True] * 9
    assert {seen[2]["Host"] for seen in mirror.asked} == {f"127.0.0.1:{mirror.server_port}"}


@pytest.mark.parametrize(
    "request_line",
    [
        "GET {other}/debian/a HTTP/1.1",
        "GET http://localhost:{port}/debian/a HTTP/1.1",
        "GET {mirror}/debian/../secret HTTP/1.1",
        "GET {mirror}/debian/%2e%2e/secret HTTP/1.1",
        "GET {mirror}/debian-other/a HTTP/1.1",
        "GET {mirror}/ HTTP/1.1",
        "GET https://127.0.0.1:{port}/debian/a HTTP/1.1",
        "GET http://127.0.0.1/debian/a HTTP/1.1",
        "CONNECT 127.0.0.1:{port} HTTP/1.1",
        "CONNECT localhost:22 HTTP/1.1",
    ],
)
def test_what_lies_elsewhere_is_refused_in_a_sentence(
    request_line: str, tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    mirror, other = started(Server()), started(Server())
    line = request_line.format(mirror=mirror.url, other=other.url, port=mirror.server_port)
    # what follows a refusal is not answered, and does not keep the refusal from arriving
    said = ask(settings(tmp_path, f"{mirror.url}/debian"), line, "GET / HTTP/1.1" * 100)
    assert said.startswith("HTTP/1.1 403 http")
    assert "is below no package mirror that the controller itself uses" in said.splitlines()[0]
    assert mirror.asked == other.asked == []


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("POST {mirror}/debian/a HTTP/1.1\r\nContent-Length: 3", 405),
        ("GET {mirror}/debian/a HTTP/1.1\r\nContent-Length: 3", 405),
        ("GET {mirror}/debian/a HTTP/1.1\r\nTransfer-Encoding: chunked", 405),
        ("GET /debian/a HTTP/1.1", 400),
        ("GET ftp://127.0.0.1/debian/a HTTP/1.1", 400),
        ("GET http://[::1/debian/a HTTP/1.1", 400),
        ("GET http://127.0.0.1:0/debian/a HTTP/1.1", 400),
        ("SSH-2.0-OpenSSH", 400),
    ],
)
def test_what_is_no_fetching_is_refused(
    request_text: str, status: int, tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    mirror = started(Server())
    said = ask(settings(tmp_path, f"{mirror.url}/debian"), request_text.format(mirror=mirror.url))
    assert said.startswith(f"HTTP/1.1 {status} ")
    assert mirror.asked == []


def test_a_mirror_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/debian/"
    said = ask(settings(tmp_path, url), f"GET {url}a HTTP/1.1")
    assert said.startswith(f"HTTP/1.1 502 the controller does not reach {urlsplit(url).netloc}: ")


def test_what_is_cut_short_does_not_look_whole(
    tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    mirror = started(Server())
    url = f"{mirror.url}/debian"
    said = ask(settings(tmp_path, url), f"GET {url}/cut HTTP/1.1", f"GET {url}/a HTTP/1.1")
    assert "Content-Length: 100" in said and said.endswith("\r\n\r\nfirst")


def test_a_login_is_added_on_the_way(tmp_path: Path, started: Callable[[Server], Server]) -> None:
    mirror = started(Server(LOGIN))
    url = f"{mirror.url}/debian"
    with_login = url.replace("//", "//me:secret@")
    asked = f"GET {url}/a HTTP/1.1"
    assert "this is /debian/a" in ask(settings(tmp_path, with_login), asked)
    logins = f"machine http://127.0.0.1:{mirror.server_port}/debian login me password secret"
    said = ask(settings(tmp_path, url, logins=logins), asked)
    assert "this is /debian/a" in said and "secret" not in said
    # one that a domain has itself comes first
    own = f"{asked}\r\nAuthorization: Basic b3RoZXI="
    assert "401" in ask(settings(tmp_path, with_login), own)
    assert "401" in ask(settings(tmp_path, url), asked)


def test_the_way_leads_through_the_controller_s_own_proxy(
    tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    proxy = started(Server())
    way = proxy.url.replace("//", "//me:secret@")
    options = f'Acquire::http::Proxy "{way}";\n'
    url = "http://mirror.invalid/debian"
    said = ask(settings(tmp_path, url, options=options), f"GET {url}/a HTTP/1.1")
    assert "this is /debian/a" in said
    method, path, headers = proxy.asked[0]
    assert (method, path, headers["Host"]) == ("GET", f"{url}/a", "mirror.invalid")
    assert headers["Proxy-Authorization"] == LOGIN


@pytest.mark.parametrize("through", [False, True])
def test_a_mirror_that_is_asked_by_https(
    through: bool, tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    proxy = started(Server())
    options = f'Acquire::http::Proxy "{proxy.url}";\n' if through else ""
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        port = mirror.getsockname()[1]
        file = settings(tmp_path, f"https://127.0.0.1:{port}/debian", options=options)
        with connected(file) as domain:
            domain.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhello".encode())
            other, _ = mirror.accept()
            with other:
                assert other.recv(100) == b"hello"
                other.sendall(b"goodbye")
            said = b"".join(iter(lambda: domain.recv(100), b""))
    assert said.startswith(b"HTTP/1.1 200 ") and said.endswith(b"\r\n\r\ngoodbye")
    assert [seen[1] for seen in proxy.asked] == ([f"127.0.0.1:{port}"] if through else [])


def test_a_domain_cannot_fill_the_controller_with_processes(tmp_path: Path) -> None:
    file = settings(tmp_path, "http://mirror.invalid/debian")
    with (tmp_path / "relay.lock").open("w") as others:
        fcntl.lockf(others, fcntl.LOCK_EX, relay.CONNECTIONS)
        assert ask(file).startswith("HTTP/1.1 503 the lab has too many connections")
    assert ask(file) == ""


HOSTS = st.sampled_from(["mirror.example", "MIRROR.example", "127.0.0.1", "mirror.example.", "a@"])
TARGETS = st.one_of(
    st.text(max_size=60),
    st.builds(
        "{}://{}{}{}".format,
        st.sampled_from(["http", "https", "HTTP"]),
        HOSTS,
        st.sampled_from(["", ":80", ":443", ":8080", ":", ":x"]),
        st.text(st.sampled_from("/debian.%2eE@:#?"), max_size=20),
    ),
)


@given(TARGETS)
def test_whatever_is_asked_for_only_the_mirror_is_reached(target: str) -> None:
    listed = mirrors.mirrors(["http://mirror.example/debian"], "", "", {})
    try:
        url = relay.parsed(target)
        relay.allowed(listed, url)
    except relay.Refusal:
        return
    assert (url.scheme, url.hostname, url.port or 80) == ("http", "mirror.example", 80)
    assert url.path.startswith("/debian/") or "%" in url.path


OPTIONS = """\
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::near.example "DIRECT";
Acquire::https::Proxy::secure.example "http://other.example";
APT::Architecture "amd64";
"""


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://mirror.example/debian", {}, "http://proxy.example:3128"),
        ("http://near.example/debian", {}, ""),
        ("https://secure.example/debian", {}, "http://other.example"),
        ("https://mirror.example/debian", {}, "http://proxy.example:3128"),
        ("http://mirror.example/debian", {"no_proxy": "a.example,.example"}, ""),
        ("http://mirror.example/debian", {"no_proxy": "ror.example"}, "http://proxy.example:3128"),
        ("http://mirror.example/debian", {"http_proxy": "http://env.example"}, "http://proxy.example:3128"),
    ],
)  # fmt: skip
def test_the_proxy_is_the_one_that_apt_would_take(
    url: str, environment: dict[str, str], proxy: str
) -> None:
    assert mirrors.mirrors([url], OPTIONS, "", environment)[0]["proxy"] == proxy


def test_a_proxy_of_the_environment_counts_where_apt_has_none() -> None:
    environment = {"http_proxy": "http://env.example:8080"}
    assert mirrors.mirrors(["http://a.example/"], "", "", environment)[0]["proxy"] == (
        "http://env.example:8080"
    )
    logins = "machine http://env.example login me password s@cret"
    found = mirrors.mirrors(["http://a.example/"], "", logins, environment)[0]
    assert (found["proxy"], found["login"]) == ("http://me:s%40cret@env.example:8080", "")


@pytest.mark.parametrize(
    ("line", "login"),
    [
        ("machine http://mirror.example login me password secret", "me:secret"),
        ("machine http://mirror.example/deb\nlogin me\npassword secret", "me:secret"),
        ("# a word\nmachine http://mirror.example/debian/ login me password secret", "me:secret"),
        # without a scheme it is about https alone, says apt_auth.conf(5)
        ("machine mirror.example login me password secret", ""),
        ("machine http://mirror.example:81 login me password secret", ""),
        ("machine http://mirror.example/ubuntu login me password secret", ""),
        ("machine http://mirror.examples login me password secret", ""),
    ],
)
def test_a_login_is_found_where_apt_finds_it(line: str, login: str) -> None:
    found = mirrors.mirrors(["http://mirror.example/debian"], "", line, {})
    assert found[0]["login"] == login


def test_what_a_lab_gets_is_its_owner_s_alone(tmp_path: Path) -> None:
    mirrors.write(tmp_path)
    assert json.loads((tmp_path / mirrors.SETTINGS).read_text())
    assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0, 0]
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.settimeout(SECONDS)
        ours.sendall(b"GET http://127.0.0.1:22/ HTTP/1.1\r\n\r\n")
        words = ["sh", mirrors.STARTER]
        subprocess.run(words, cwd=tmp_path, stdin=theirs.fileno(), timeout=SECONDS, check=True)
        assert ours.recv(65536).startswith(b"HTTP/1.1 403 http://127.0.0.1:22/ is below no package")


# An archive of one package in "$2", and a system whose apt knows it at "$3".
ARCHIVE = (
    SYSTEM_COPY
    + """
    mkdir -p "$2/made/DEBIAN" "$2/made/usr/share/xenlab-test"
    printf "%s\\n" "Package: sample" "Version: 1" "Architecture: all" \\
        "Maintainer: a <a@example.org>" "Description: made for a test" > "$2/made/DEBIAN/control"
    echo relayed > "$2/made/usr/share/xenlab-test/sample"
    (cd "$2" && dpkg-deb -b made sample.deb && dpkg-scanpackages . > Packages)
    chroot "$root" sh -euc '
        rm -rf /etc/apt/sources.list* /var/lib/apt/lists/* /etc/apt/auth.conf*
        echo "deb [trusted=yes] $1 ./" > /etc/apt/sources.list
        echo "APT::Sandbox::User \\"root\\";" > /etc/apt/apt.conf.d/99test
    ' sh "$3"
"""
)


def test_apt_installs_through_it_from_a_mirror_that_wants_a_login(
    tmp_path: Path, started: Callable[[Server], Server]
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (tmp_path / "system").mkdir()
    mirror = started(Server(LOGIN, archive))
    url = f"{mirror.url}/debian"
    settings(tmp_path, url.replace("//", "//me:secret@"))
    namespace = Namespace(users=True)
    try:
        Host(namespace).run(
            Command.script(ARCHIVE, str(tmp_path / "system"), str(archive), url), timeout=120
        )
        host = Host(namespace).inside(f"{tmp_path}/system/root")
        with relayed(tmp_path) as served:
            apt = Apt(proxy=served.url)
            wanted = (*apt.settled(), apt.updated(), apt.installed("sample"))
            for resource in wanted:
                assert resource.probe(host) is not None
                resource.apply(host, lambda what, done=None: None)
                assert resource.probe(host) is None
        assert host.read("/usr/share/xenlab-test/sample") == "relayed\n"
        found = host.run("grep -r secret /etc/apt /var/lib/apt", check=False)
        assert found.status == 1
        # a site that has no proxy any more takes the file away
        (gone,) = Apt().settled()
        assert gone.probe(host) is not None
        gone.apply(host, lambda what, done=None: None)
        assert gone.probe(host) is None
    finally:
        namespace.end()
