"""Login: with keys, certificates, an agent, or what a person types, which is not kept."""

from __future__ import annotations

import getpass
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.common import (
    MSG_SERVICE_ACCEPT,
    MSG_USERAUTH_BANNER,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_INFO_REQUEST,
    MSG_USERAUTH_SUCCESS,
    cMSG_SERVICE_REQUEST,
    cMSG_USERAUTH_INFO_RESPONSE,
    cMSG_USERAUTH_REQUEST,
)

from xenlab.errors import ConnectionRefused, NoConnection, Unreachable
from xenlab.transport.keys import Key, Keys
from xenlab.transport.ssh_config import METHODS, Route, Target

POLL_SECONDS = 0.1
"""How often a stop request and the deadline are looked at."""

ROUNDS = 8
"""How many times a server may ask for something more in keyboard-interactive."""

TOO_MANY = "Too many authentication failures"
"""What OpenSSH's sshd says where MaxAuthTries is reached."""


class Nobody(Exception):
    """There is nobody who could be asked for a password."""


def ask(prompt: str) -> str:
    """What a person types, unseen, at the terminal or in JupyterLab's password field.

    Raises Nobody where there is neither, and in a thread, which must not take the terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        raise Nobody
    if getpass.getpass is getattr(getpass, "unix_getpass", None):
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        except OSError as error:
            raise Nobody from error
    try:
        return getpass.getpass(prompt)
    except (NotImplementedError, EOFError) as error:
        raise Nobody from error


@dataclass(frozen=True)
class _Answer:
    """What the server has answered: which message, and in it which methods may follow."""

    kind: int
    methods: tuple[str, ...] = ()
    partial: bool = False
    message: Any = None


class _Handler(AuthHandler):
    """Hands the server's answers to the thread that logs in.

    paramiko's own would sign, and ask a person, in the thread that reads from the network.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        super().__init__(transport)
        self.answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()

    @property
    def _client_handler_table(self) -> dict[int, Callable[[Any], None]]:
        return {
            MSG_SERVICE_ACCEPT: lambda message: self.answers.put(_Answer(MSG_SERVICE_ACCEPT)),
            MSG_USERAUTH_SUCCESS: self._success,
            MSG_USERAUTH_FAILURE: self._failure,
            MSG_USERAUTH_BANNER: lambda message: None,
            # of the same number as "this key would do"
            MSG_USERAUTH_INFO_REQUEST: self._asked,
        }

    def _success(self, message: Any) -> None:
        self.authenticated = True
        self.transport._auth_trigger()  # type: ignore[attr-defined]
        self.answers.put(_Answer(MSG_USERAUTH_SUCCESS))

    def _failure(self, message: Any) -> None:
        methods, partial = tuple(message.get_list()), message.get_boolean()
        self.answers.put(_Answer(MSG_USERAUTH_FAILURE, methods, partial))

    def _asked(self, message: Any) -> None:
        self.answers.put(_Answer(MSG_USERAUTH_INFO_REQUEST, message=message))

    def signed(self, key: Key, user: str) -> tuple[str, Callable[[], bytes]]:
        """The algorithm to use with a key, and what makes the signature."""
        key.signer.public_blob = key.public
        algorithm: str = self._finalize_pubkey_algorithm(  # type: ignore[attr-defined]
            key.public.key_type
        )
        blob = self._get_session_blob(  # type: ignore[attr-defined]
            key.signer, "ssh-connection", user, algorithm
        )

        def sign() -> bytes:
            signature: Any = key.signer.sign_ssh_data(blob, algorithm)
            return bytes(signature) if isinstance(signature, bytes) else signature.asbytes()

        return algorithm, sign


class Login:
    """One login over an encrypted connection whose host key was checked.

    ``deadline`` is by the monotonic clock; what a person takes to answer does not count.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        target: Target,
        route: Route,
        deadline: float,
        stop: threading.Event | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._transport = transport
        self._target = target
        self._route = route
        self._deadline = deadline
        self._stop = stop
        self._say = say
        self._keys = Keys(route)
        self._candidates = self._keys.candidates()
        self._handler = _Handler(transport)
        self._allowed: tuple[str, ...] | None = None
        self._nobody = False
        self._typed = ""
        transport.auth_handler = self._handler

    def run(self) -> None:
        """Log in, or raise why not.

        Raises Unreachable with one sentence where nothing is accepted, ConnectionRefused where
        nobody answers any more, KeyboardInterrupt when ``stop`` is set.
        """
        try:
            self._send(cMSG_SERVICE_REQUEST, "ssh-userauth")
            self._answer(MSG_SERVICE_ACCEPT)
            if self._with_all():
                return
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._broken_off(error) from error
        finally:
            self._candidates.close()  # type: ignore[attr-defined]
        raise self._refusal()

    def _with_all(self) -> bool:
        """Try every method that the server has not excluded, one after the other."""
        done: set[str] = set()
        tries = {
            "publickey": self._publickey,
            "keyboard-interactive": self._interactive,
            "password": self._password,
        }
        while True:
            left = [name for name in self._route.methods if name not in done]
            if self._allowed is not None:
                left = [name for name in left if name in self._allowed]
            if not left:
                return self._allowed is None and self._none()
            answer = tries[left[0]]()
            if answer is None:
                done.add(left[0])
                # no key at all: what does it want instead?
                if self._allowed is None and left[0] == "publickey" and self._none():
                    return True
                continue
            if answer.kind == MSG_USERAUTH_SUCCESS:
                return True
            self._allowed = answer.methods
            if left[0] != "publickey":
                # nobody is asked twice
                done.add(left[0])
            elif "publickey" not in answer.methods and not answer.partial:
                # it wants something else first, and has not looked at the key
                self._candidates = self._keys.candidates()

    def _none(self) -> bool:
        answer = self._request("none")
        if answer.kind == MSG_USERAUTH_SUCCESS:
            return True
        self._allowed = answer.methods
        return False

    def _publickey(self) -> _Answer | None:
        """The answer to the next key that can be offered, None where there is none left."""
        for key in self._candidates:
            try:
                algorithm, sign = self._handler.signed(key, self._route.user)
            except paramiko.SSHException as error:
                self._keys.notes.append(f"{key.name} cannot be used there: {error}")
                continue
            self._keys.tried.append(key.name)
            shown = (algorithm, key.public.key_blob)
            if key.of_agent:
                # nobody is to touch a key, or to say yes, for a server that does not know it
                answer = self._request("publickey", False, *shown)
                if answer.kind != MSG_USERAUTH_INFO_REQUEST:
                    return answer
            try:
                if key.wants_a_touch:
                    self._say(f"touch the security key of {key.name}")
                signature = self._of_a_person(sign)
            except (paramiko.SSHException, OSError, ValueError) as error:
                self._keys.notes.append(f"{key.name} does not sign: {error}")
                continue
            return self._request("publickey", True, *shown, signature)
        return None

    def _password(self) -> _Answer | None:
        who = f"{self._route.user}@{self._route.host}"
        try:
            text = self._ask(f"{who}'s password: ")
        except Nobody:
            return None
        return self._request("password", False, text)

    def _interactive(self) -> _Answer | None:
        if not self._someone():
            return None
        answer = self._request("keyboard-interactive", "", "")
        for _ in range(ROUNDS):
            if answer.kind != MSG_USERAUTH_INFO_REQUEST:
                return answer
            message = answer.message
            title, instructions, _ = (_plain(message.get_binary()) for _ in range(3))
            said = " ".join(text for text in (title, instructions) if text)
            prompts = []
            for _ in range(message.get_int()):
                prompts.append(_plain(message.get_binary()))
                # whether an answer may be seen: none is
                message.get_boolean()
            try:
                texts = [self._ask(self._prompt(said, prompt)) for prompt in prompts]
            except Nobody:
                return None
            reply = paramiko.Message()
            reply.add_byte(cMSG_USERAUTH_INFO_RESPONSE)
            reply.add_int(len(texts))
            for text in texts:
                reply.add_string(text)
            self._transport._send_message(reply)  # type: ignore[attr-defined]
            answer = self._answer()
        return None

    def _prompt(self, said: str, prompt: str) -> str:
        who = f"({self._route.user}@{self._route.host}) "
        return who + (f"{said}: " if said else "") + prompt + " "

    def _someone(self) -> bool:
        """Whether a person may be there; only asking tells for sure."""
        return not (self._route.batch or self._nobody)

    def _ask(self, prompt: str) -> str:
        if not self._someone():
            raise Nobody
        try:
            text: str = self._of_a_person(lambda: ask(prompt))
        except Nobody:
            self._nobody = True
            raise
        self._typed = "what was typed"
        return text

    def _of_a_person(self, give: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return give()
        finally:
            self._deadline += time.monotonic() - began

    def _request(self, method: str, *fields: Any) -> _Answer:
        self._send(cMSG_USERAUTH_REQUEST, self._route.user, "ssh-connection", method, *fields)
        return self._answer()

    def _send(self, kind: bytes, *fields: Any) -> None:
        message = paramiko.Message()
        message.add_byte(kind)
        for field in fields:
            if isinstance(field, bool):
                message.add_boolean(field)
            else:
                message.add_string(field)
        self._transport._send_message(message)  # type: ignore[attr-defined]

    def _answer(self, wanted: int | None = None) -> _Answer:
        while True:
            try:
                answer = self._handler.answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stop is not None and self._stop.is_set():
                    raise KeyboardInterrupt from None
                if time.monotonic() > self._deadline:
                    raise TimeoutError("it did not answer in time") from None
                if not self._transport.is_active():
                    raise EOFError("it closed the connection") from None
                continue
            if wanted in (None, answer.kind):
                return answer

    def _broken_off(self, error: Exception) -> NoConnection:
        who, where = f"{self._route.user}@{self._route.address}", self._target.host
        said = _plain(getattr(self._transport, "farewell", b""))
        if TOO_MANY in said:
            return Unreachable(
                f"cannot log in as {who}: because it lets nobody try so often (its MaxAuthTries); "
                f"offered were {', '.join(dict.fromkeys(self._keys.tried))}{self._noted()}",
                where=where,
                hint="name the right key in IdentityFile, with IdentitiesOnly yes, or in "
                "ssh.identity",
            )
        if isinstance(error, TimeoutError):
            reason, hint = (
                "it did not answer in time",
                "look at the machine's load, then run the step again",
            )
        else:
            reason = f"the login was broken off: {said or error or 'connection closed'}"
            hint = "look at the machine's own log of sshd"
        return ConnectionRefused(
            f"cannot log in as {who}: because {reason}", where=where, hint=hint
        )

    def _noted(self) -> str:
        notes = dict.fromkeys(self._keys.notes)
        return f" ({'; '.join(notes)})" if notes else ""

    def _refusal(self) -> NoConnection:
        route, tried, methods = self._route, dict.fromkeys(self._keys.tried), self._allowed
        authorize = f"add the public key to ~{route.user}/.ssh/authorized_keys there"
        if methods and "publickey" not in methods:
            again = "further " if tried and "password" not in methods else ""
            wanted = " or ".join(methods)
            if self._typed:
                reason = f"it does not accept {self._typed} for {wanted}"
            else:
                reason = f"it asks for a {again}{wanted}, and {self._why_nobody(methods)}"
            reason += self._noted()
            hint = f"{authorize} and allow PubkeyAuthentication in its sshd_config"
        elif not tried:
            names = ", ".join(str(path) for path in route.identities) or "no identity file"
            reason = f"there is no key for that: {names} not usable, no agent key{self._noted()}"
            hint = "name a key file in ssh.identity, or ssh-add it to an agent"
        else:
            reason = f"it accepts none of the keys offered: {', '.join(tried)}{self._noted()}"
            if self._typed:
                reason += f", nor {self._typed}"
            hint = f"{authorize}, or name another key in ssh.identity"
        return Unreachable(
            f"cannot log in as {route.user}@{route.address}: because {reason}",
            where=self._target.host,
            hint=hint,
        )

    def _why_nobody(self, methods: tuple[str, ...]) -> str:
        if not set(methods) & set(METHODS):
            return "xenlab knows no such way"
        if self._route.batch:
            return "BatchMode says to ask nobody"
        if self._nobody:
            return "nobody can be asked here"
        return "the ssh_config says not to"


def _plain(words: bytes) -> str:
    """A server's words in one line, without what would move a terminal's cursor."""
    text = words.decode("utf-8", "replace")
    return " ".join(re.sub(r"[^\w\s!-~]", "", text).split())
