"""Login: with a key file or an agent's key, never with a password."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.pkey import PublicBlob

from xenlab.errors import ConnectionRefused, NoConnection, Unreachable
from xenlab.target import Route, Target


@dataclass
class _Offer:
    """The keys that may be tried, and why others may not."""

    route: Route
    notes: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def candidates(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Each key with its name, identity files first; an agent is asked only if need be."""
        seen: set[bytes] = set()
        for path in self.route.identities:
            key = self._from_file(path)
            if key is not None and key.asbytes() not in seen:
                seen.add(key.asbytes())
                yield str(path), key
        yield from self._from_agent(seen)

    def _from_file(self, path: Path) -> paramiko.PKey | None:
        if path.suffix == ".pub" or not path.exists():
            return None
        try:
            return paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):
            self.notes.append(f"{path} is protected by a passphrase: ssh-add {path}")
        except OSError as error:
            self.notes.append(f"{path} cannot be read: {error.strerror}")
        except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
            self.notes.append(f"{path} holds no private key")
        return None

    def _from_agent(self, seen: set[bytes]) -> Iterator[tuple[str, paramiko.PKey]]:
        wanted = set()
        for path in self.route.identities:
            public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
            try:
                wanted.add(PublicBlob.from_file(str(public)).key_blob)
            except (OSError, ValueError, paramiko.SSHException):
                continue
        try:
            agent = paramiko.Agent()
        except (paramiko.SSHException, OSError) as error:
            self.notes.append(f"the SSH agent does not answer: {error}")
            return
        try:
            for key in agent.get_keys():
                blob = key.asbytes()
                if blob not in seen and (blob in wanted or not self.route.identities_only):
                    yield f"the agent's {key.comment or key.get_name()}", key
        finally:
            agent.close()


def public_keys(route: Route) -> tuple[str, ...]:
    """The public halves of the keys that would be tried there, as authorized_keys(5) has them."""
    found = (key for name, key in _Offer(route).candidates())
    return tuple(f"{key.get_name()} {key.get_base64()}" for key in found)


def log_in(transport: paramiko.Transport, target: Target, route: Route, deadline: float) -> None:
    """Authenticate an encrypted connection whose host key was checked.

    Raises Unreachable with one sentence where no key is accepted, ConnectionRefused where nobody
    answers any more.
    """
    offer = _Offer(route)
    accepted: list[str] | None = None
    try:
        for name, key in offer.candidates():
            transport.auth_timeout = max(0.1, deadline - time.monotonic())
            offer.tried.append(name)
            try:
                accepted = transport.auth_publickey(route.user, key)
            except paramiko.BadAuthenticationType as error:
                accepted = error.allowed_types
                break
            except paramiko.AuthenticationException:
                if not transport.is_active() or time.monotonic() > deadline:
                    break
                continue
            if not accepted:
                return
            break
        if not offer.tried:
            accepted = _ask_methods(transport, route)
            if not accepted:
                return
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise ConnectionRefused(
            f"{route.address} broke off the login of {route.user}: {error or 'connection closed'}",
            where=target.host,
            hint="look at the machine's own log of sshd",
        ) from error
    raise _refusal(target, route, offer, accepted, deadline)


def _ask_methods(transport: paramiko.Transport, route: Route) -> list[str]:
    """What the server wants of somebody who has no key; nothing if it lets them in."""
    try:
        return transport.auth_none(route.user)
    except paramiko.BadAuthenticationType as error:
        return error.allowed_types


def _refusal(
    target: Target,
    route: Route,
    offer: _Offer,
    methods: list[str] | None,
    deadline: float,
) -> NoConnection:
    who = f"{route.user}@{route.address}"
    notes = f" ({'; '.join(offer.notes)})" if offer.notes else ""
    authorize = f"add the public key to ~{route.user}/.ssh/authorized_keys there"
    if methods and "publickey" not in methods:
        again = "further " if offer.tried and "password" not in methods else ""
        problem = f"{who} asks for a {again}{' or '.join(methods)}; only keys and agents are used"
        hint = f"{authorize} and allow PubkeyAuthentication in its sshd_config"
    elif time.monotonic() > deadline:
        return ConnectionRefused(
            f"{who} did not answer the login in time",
            where=target.host,
            hint="is the machine overloaded?",
        )
    elif not offer.tried:
        names = ", ".join(str(path) for path in route.identities) or "no identity file"
        problem = f"there is no key to log in as {who}: {names} not usable, no agent key{notes}"
        hint = "name a key file in ssh.identity, or ssh-add it to an agent"
    else:
        problem = f"{who} accepts none of the keys offered: {', '.join(offer.tried)}{notes}"
        hint = f"{authorize}, or name another key in ssh.identity"
    return Unreachable(problem, where=target.host, hint=hint)
