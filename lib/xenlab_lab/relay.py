"""The way from a lab to the package mirrors: an HTTP proxy for one connection.

QEMU runs this file for each connection that a domain makes to the relay's address, as
``python -I -S relay.py relay.json`` in the lab's folder; the connection is its standard input.
So it imports what a start needs and nothing else.

It fetches what lies below the mirrors that relay.json names (`xenlab_lab.mirrors` writes it), by
GET and HEAD, and connects (CONNECT) to the host and port of one that is asked by https. All else is
refused with 403 and one sentence: the controller's loopback, its network, the Internet, another
name, port or path of a mirror. Names are resolved here. A mirror's login, and the proxy that the
controller itself uses with its login, are added here and reach no domain. By https a domain speaks
with the mirror itself, and nothing can be added.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import socket
import sys
from contextlib import suppress
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse, parse_headers
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

CONNECTIONS = 32
_SECONDS = 120.0
_QUIET_SECONDS = 600.0
_LAST_SECONDS = 5.0
_LINE = 8192
_PIECE = 65536
# A connection's own affair, and never the next one's (RFC 9110, 7.6.1).
_HOP = frozenset(
    ("connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding",
     "upgrade", "proxy-authorization", "proxy-authenticate", "proxy-authentication-info")
)  # fmt: skip
_OWN = _HOP | {"host", "content-length", "expect"}


class Refusal(Exception):
    """What the domain is told instead of an answer: a status, and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Relay:
    """One connection of a domain; ``mirrors`` is what relay.json holds."""

    def __init__(self, domain: socket.socket, mirrors: list[dict[str, str]]) -> None:
        self.domain = domain
        self.stream = domain.makefile("rb")
        self.mirrors = mirrors
        self._upstream: HTTPConnection | None = None
        self._first = ("", 0)

    def serve(self) -> None:
        """Answer request after request until one of both ends it."""
        self.domain.settimeout(_QUIET_SECONDS)
        while line := self.stream.readline(_LINE):
            try:
                if not self._answer(line.decode("latin-1").split(), parse_headers(self.stream)):
                    return
            except Refusal as refusal:
                self.tell(refusal)
                return

    def _answer(self, words: list[str], headers: Message) -> bool:
        """Answer one request; whether the connection goes on."""
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise Refusal(400, "this is no request of HTTP/1.1")
        method, target, version = words
        if method == "CONNECT":
            self._tunnel(target)
            return False
        if method not in ("GET", "HEAD") or "transfer-encoding" in headers:
            raise Refusal(405, "the relay of the lab fetches by GET and HEAD alone")
        if headers.get("content-length", "0").strip() != "0":
            raise Refusal(405, "the relay of the lab passes nothing on but what is asked for")
        url = parsed(target)
        response = self._fetched(method, url, headers)
        lasting = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower()
        return self._pass_on(method, response, lasting=lasting)

    def _fetched(self, method: str, url: SplitResult, headers: Message) -> HTTPResponse:
        mirror = allowed(self.mirrors, url)
        host = url.netloc.rpartition("@")[2]
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        sent = [(name, value) for name, value in headers.items() if name.lower() not in _OWN]
        sent.append(("Host", host))
        if mirror["login"] and "authorization" not in headers:
            sent.append(("Authorization", _basic(mirror["login"])))
        first = (url.hostname or "", url.port or 80)
        if mirror["proxy"]:
            first, login = _proxy(mirror["proxy"])
            target = f"http://{host}{target}"
            sent += [("Proxy-Authorization", login)] if login else []
        response = self._asked(first, method, target, sent)
        if response.status == 407:
            raise Refusal(502, "the controller's proxy wants a login that the relay does not have")
        return response

    def _asked(
        self, first: tuple[str, int], method: str, target: str, headers: list[tuple[str, str]]
    ) -> HTTPResponse:
        """What a server answers; the connection to it is kept for the next request."""
        while True:
            reused = self._upstream is not None and self._first == first
            if self._upstream is None or not reused:
                self._upstream, self._first = HTTPConnection(*first, timeout=_SECONDS), first
            try:
                self._upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
                for name, value in headers:
                    self._upstream.putheader(name, value)
                self._upstream.endheaders()
                return self._upstream.getresponse()
            except (OSError, HTTPException, ValueError) as error:
                self._upstream.close()
                self._upstream = None
                # the other side may close what it has kept open, and that is no answer
                if not reused:
                    raise _unreached(first, error) from None

    def _pass_on(self, method: str, response: HTTPResponse, *, lasting: bool) -> bool:
        # a length that nobody knows is told by pieces, or by the end of the connection
        bare = method == "HEAD" or response.status in (204, 304)
        pieces = not bare and response.length is None and lasting
        lasting = lasting and (bare or pieces or response.length is not None)
        lines = [
            f"HTTP/1.1 {response.status} {response.reason}",
            *(
                f"{name}: {text}"
                for name, text in response.getheaders()
                if name.lower() not in _HOP
            ),
            *(["Transfer-Encoding: chunked"] if pieces else []),
            f"Connection: {'keep-alive' if lasting else 'close'}",
        ]
        self.domain.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        while piece := response.read(_PIECE):
            self.domain.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if pieces else piece)
        if not bare and response.length:
            # cut short: the domain must not take it for the whole
            return False
        if pieces:
            self.domain.sendall(b"0\r\n\r\n")
        return lasting

    def _tunnel(self, target: str) -> None:
        url = parsed(f"https://{target}")
        mirror = allowed(self.mirrors, url)
        wanted = first = (url.hostname or "", url.port or 443)
        login = ""
        if mirror["proxy"]:
            first, login = _proxy(mirror["proxy"])
        connection = HTTPConnection(*first, timeout=_SECONDS)
        if mirror["proxy"]:
            connection.set_tunnel(*wanted, {"Proxy-Authorization": login} if login else {})
        try:
            connection.connect()
        except (OSError, HTTPException) as error:
            raise _unreached(first, error) from None
        self.domain.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _both_ways(self.domain, self.stream, connection.sock)

    def tell(self, refusal: Refusal) -> None:
        """Answer with a refusal; apt shows the words of its first line, others the text."""
        text = f"{refusal}\n".encode("ascii", "replace")
        head = (
            f"HTTP/1.1 {refusal.status} {text.decode().strip()}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        )
        self.domain.sendall(head.encode() + text)


def place(url: SplitResult) -> str:
    """Scheme, host and port of a URL, as relay.json has them."""
    return f"{url.scheme}://{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}"


def allowed(mirrors: list[dict[str, str]], url: SplitResult) -> dict[str, str]:
    """The mirror below which a URL lies, by scheme, host, port and path. Raises Refusal."""
    path = unquote(url.path)
    for mirror in mirrors:
        # by CONNECT nobody says which path is meant
        below = url.scheme == "https" or path.startswith(mirror["path"])
        if mirror["place"] == place(url) and below and ".." not in path.split("/"):
            return mirror
    raise Refusal(
        403,
        f"{place(url)}{url.path} is below no package mirror that the controller itself uses: "
        "the relay of the lab fetches from those alone (all is open after: xenlab lab up --open)",
    )


def parsed(target: str) -> SplitResult:
    """The address that a request names. Raises Refusal if it is none of http or https."""
    try:
        url = urlsplit(target)
        port = url.port
    except ValueError:
        raise Refusal(400, "this is no address") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise Refusal(400, "this is a proxy: it is asked for http://HOST/PATH")
    return url


def _proxy(text: str) -> tuple[tuple[str, int], str]:
    """Where a proxy is, and the header by which one logs in there, "" if that is not wanted."""
    url = urlsplit(text)
    if url.scheme != "http":
        raise Refusal(502, "the controller's proxy is none that the relay of the lab can use")
    login = f"{unquote(url.username)}:{unquote(url.password or '')}" if url.username else ""
    return (url.hostname or "", url.port or 80), _basic(login) if login else ""


def _basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _unreached(place: tuple[str, int], error: Exception) -> Refusal:
    return Refusal(502, f"the controller does not reach {place[0]}:{place[1]}: {error}"[:300])


def _both_ways(domain: socket.socket, stream: io.BufferedReader, mirror: socket.socket) -> None:
    """Pass bytes on until one side ends, or both are silent for long."""
    # what came right behind the request was read along with it
    domain.setblocking(False)
    early = stream.read1(_PIECE)
    domain.settimeout(_QUIET_SECONDS)
    mirror.settimeout(_QUIET_SECONDS)
    if early:
        mirror.sendall(early)
    other = {domain: mirror, mirror: domain}
    while readable := select.select(list(other), [], [], _QUIET_SECONDS)[0]:
        for each in readable:
            piece = each.recv(_PIECE)
            if not piece:
                return
            other[each].sendall(piece)


def _is_one_of_few(folder: Path) -> bool:
    """Whether this process is among the few that a lab may have at a time; until it ends."""
    file = os.open(folder / "relay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for number in range(CONNECTIONS):
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            return True
    return False


def main(settings: Path) -> None:
    """Serve the connection that standard input is, by what a file says."""
    domain = socket.socket(fileno=os.dup(0))
    # standard error is the connection as well, and an error of this program is no answer
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    relay = Relay(domain, json.loads(settings.read_text(encoding="utf-8")))
    with suppress(OSError, HTTPException, ValueError):
        if _is_one_of_few(settings.parent):
            relay.serve()
        else:
            relay.tell(Refusal(503, "the lab has too many connections to its mirrors"))
        # to close while something unread is left would take back what was just sent
        domain.shutdown(socket.SHUT_WR)
        domain.settimeout(_LAST_SECONDS)
        while domain.recv(_PIECE):
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
