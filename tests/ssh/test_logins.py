"""One table of logins: xenlab gets in where ``ssh`` does, as the same user by the same key.

Each case is an ssh_config that OpenSSH's own client and xenlab use in turn, each in a folder of its
own, against real sshds. What is compared is whether they get in, what the sshd says of who came
(ExposeAuthInfo) and what has become of known_hosts.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.ssh.logins import ADDRESS, BASE, ME, World

from xenlab.errors import BadInput, NoConnection
from xenlab.transport.ssh import SSH, Wait
from xenlab.transport.ssh_config import Target

ASK = "cat $SSH_USER_AUTH; id -un; echo $XENLAB_NOTES"
"""What is run: who came by which key, and to which sshd."""

PINNED = f"[{ADDRESS}]:<port> <hostkey>\n"


@dataclass(frozen=True)
class Case:
    """One login; in all texts a name in angle brackets is filled in by `World.filled`.

    ``refused`` is a pattern of what xenlab says where nobody gets in, "" where both do. ``differs``
    says why xenlab refuses what ``ssh`` accepts. ``by`` is the key that lets them in.
    """

    name: str
    config: str = ""
    refused: str = ""
    differs: str = ""
    by: str = ""
    known: str = PINNED
    server: str = "box"
    identity: str = "<good>"
    host: str = "box"
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def C(name: str, config: str = "", refused: str = "", **more: object) -> Case:
    """A case in few words."""
    return Case(name, config, refused, **more)  # type: ignore[arg-type]


UNKNOWN, CHANGED, REVOKED = "its key is unknown", "its key has changed", "which is revoked in"
NO_KEY, NONE_TAKEN = "there is no key for that", "it accepts none of the keys offered"
TOO_MANY = "it lets nobody try so often"
OTHER = f"[{ADDRESS}]:<port> <stranger:public>\n"
CA = "@cert-authority * <host_ca:public>\n"
HOST_GOOD, HOST_OLD = (f"[{ADDRESS}]:<port> <{key}:public>\n" for key in ("host_good", "host_old"))
WEAK = "a host key that nobody has compared is not trusted, whatever the ssh_config says"
ENGINE = "paramiko has no such algorithm"
CERTIFIED, EXPIRED = {"server": "certified"}, {"server": "expired"}

KNOWN_HOSTS = [
    C("pinned"),
    C("unknown", "", UNKNOWN, known=""),
    C("unknown, yes", "StrictHostKeyChecking yes", UNKNOWN, known=""),
    C("unknown, accept-new", "StrictHostKeyChecking accept-new", known=""),
    C(
        "unknown, accept-new, hashed",
        "StrictHostKeyChecking accept-new\nHashKnownHosts yes",
        known="",
    ),
    C("unknown, no", "StrictHostKeyChecking no", f"{UNKNOWN}.*no is not", known="", differs=WEAK),
    C("changed", "", CHANGED, known=OTHER),
    C("changed, accept-new", "StrictHostKeyChecking accept-new", CHANGED, known=OTHER),
    C("changed, no", "StrictHostKeyChecking no", CHANGED, known=OTHER, differs=WEAK),
    C(
        "accept-new that nothing keeps",
        "StrictHostKeyChecking accept-new\nUserKnownHostsFile /dev/null",
        "/dev/null: because it is no regular file",
        differs=WEAK,
    ),
    C(
        "no check of this machine",
        "NoHostAuthenticationForLocalhost yes",
        UNKNOWN,
        known="",
        differs=WEAK,
    ),
    C("revoked", "", REVOKED, known="@revoked * <hostkey>\n"),
    C("revoked though pinned", "", REVOKED, known=PINNED + "@revoked * <hostkey>\n"),
    C("another is revoked", known=PINNED + "@revoked * <stranger:public>\n"),
    C("revoked for another host", known=PINNED + "@revoked elsewhere <hostkey>\n"),
    C("in RevokedHostKeys", "RevokedHostKeys <dir>/gone", REVOKED, files={"gone": "<hostkey>\n"}),
    C("in a key revocation list", "RevokedHostKeys <box.krl>", REVOKED),
    C("another in a key revocation list", "RevokedHostKeys <stranger.krl>"),
    C("RevokedHostKeys names others", "RevokedHostKeys <stranger.pub>"),
    C("RevokedHostKeys is missing", "RevokedHostKeys <dir>/gone", "gone, which names revoked keys"),
    C("hashed", known="<hashed>"),
    C("another hashed", "", UNKNOWN, known="<hashed-other>"),
    C("a pattern", known="[127.0.*]:* <hostkey>\n"),
    C("a negated pattern", "", UNKNOWN, known=f"*,!{ADDRESS},![{ADDRESS}]:<port> <hostkey>\n"),
    C("the mere name for any port", known=f"{ADDRESS} <hostkey>\n"),
    C("the mere name of another key", known=PINNED + f"{ADDRESS} <stranger:public>\n"),
    C("the port's own line counts first", "", CHANGED, known=OTHER + f"{ADDRESS} <hostkey>\n"),
    C("HostKeyAlias", "HostKeyAlias castle", known="castle <hostkey>\n"),
    C("HostKeyAlias that nobody knows", "HostKeyAlias tower", UNKNOWN, known="castle <hostkey>\n"),
    C(
        "HostKeyAlias has no port",
        "HostKeyAlias castle",
        UNKNOWN,
        known="[castle]:<port> <hostkey>\n",
    ),
    C("several known_hosts", "UserKnownHostsFile <dir>/a <dir>/b", files={"b": PINNED}),
    C("GlobalKnownHostsFile", "GlobalKnownHostsFile <dir>/b", known="", files={"b": PINNED}),
    C(
        "known_hosts by tokens",
        "UserKnownHostsFile <dir>/%h-%p",
        files={f"{ADDRESS}-<port>": PINNED},
    ),
    C(
        "known_hosts by HostKeyAlias",
        "HostKeyAlias castle\nUserKnownHostsFile <dir>/%k",
        files={"castle": "castle <hostkey>\n"},
    ),
    C(
        "known_hosts by a variable",
        "UserKnownHostsFile ${XENLAB_PLACE}/b",
        environment={"XENLAB_PLACE": "<dir>"},
        files={"b": PINNED},
    ),
    C("known_hosts with a space", 'UserKnownHostsFile "<dir>/a b"', files={"a b": PINNED}),
    C("known_hosts is missing", "UserKnownHostsFile <dir>/b", UNKNOWN),
    C("a damaged line", known="rubbish\n[x ssh-ed25519 AAAA\n" + PINNED),
    C("a key of another type", server="many", known=f"[{ADDRESS}]:<port> <host_rsa:public>\n"),
    C("ECDSA", server="many", known=f"[{ADDRESS}]:<port> <host_ecdsa:public>\n"),
    C("only another type is pinned", "", CHANGED, known=f"[{ADDRESS}]:<port> <host_rsa:public>\n"),
    C(
        "HostKeyAlgorithms",
        "HostKeyAlgorithms rsa-sha2-256",
        server="many",
        known=f"[{ADDRESS}]:<port> <host_rsa:public>\n",
    ),
    C(
        "HostKeyAlgorithms that it lacks",
        "HostKeyAlgorithms rsa-sha2-256",
        "no algorithm in common",
    ),
    C("an authority", known=CA, **CERTIFIED),
    C("an authority of a pattern", known="@cert-authority 127.* <host_ca:public>\n", **CERTIFIED),
    C(
        "an authority of another pattern",
        "",
        UNKNOWN,
        known="@cert-authority *.example.org <host_ca:public>\n",
        **CERTIFIED,
    ),
    C("another authority", "", UNKNOWN, known="@cert-authority * <other_ca:public>\n", **CERTIFIED),
    C(
        "another authority, and pinned",
        known="@cert-authority * <other_ca:public>\n" + HOST_GOOD,
        **CERTIFIED,
    ),
    C("pinned, and certified", known=HOST_GOOD, **CERTIFIED),
    C("an authority, and another key pinned", known=CA + OTHER, **CERTIFIED),
    C("an authority is no host", "", UNKNOWN, known="@cert-authority * <hostkey>\n"),
    C("certificate expired", "", r"valid from 2020-01-01 .* until 2021-01-01", known=CA, **EXPIRED),
    C("certificate expired, and pinned", known=CA + HOST_OLD, **EXPIRED),
    C(
        "certificate of another host",
        "HostKeyAlias tower",
        "is for 127.0.0.1, castle",
        known=CA,
        **CERTIFIED,
    ),
    C("certificate by HostKeyAlias", "HostKeyAlias castle", known=CA, **CERTIFIED),
    C("authority revoked", "", REVOKED, known=CA + "@revoked * <host_ca:public>\n", **CERTIFIED),
    C(
        "certified key revoked",
        "",
        REVOKED,
        known=CA + "@revoked * <host_good:public>\n",
        **CERTIFIED,
    ),
    C(
        "authority in RevokedHostKeys",
        "RevokedHostKeys <host_ca.pub>",
        REVOKED,
        known=CA,
        **CERTIFIED,
    ),
    C(
        "certificate in a revocation list",
        "RevokedHostKeys <serial.krl>",
        REVOKED,
        known=CA,
        **CERTIFIED,
    ),
    C(
        "CASignatureAlgorithms",
        "CASignatureAlgorithms rsa-sha2-512",
        "is signed with ssh-ed25519",
        known=CA,
        **CERTIFIED,
    ),
    C(
        "an unknown authority, accept-new",
        "StrictHostKeyChecking accept-new",
        known="",
        **CERTIFIED,
    ),
]

AGENT = {"SSH_AUTH_SOCK": "<agent:good>"}
MANY = {"SSH_AUTH_SOCK": "<agent:n0+n1+n2+n3+n4+n5+n6+n7+good>"}
TRUSTING = {"server": "trusting"}
NAMED_ONLY = "IdentitiesOnly yes"

KEYS = [
    C("a key file", by="good"),
    C("the second file", "IdentityFile <stranger>", by="good"),
    C("a missing file before", "IdentityFile <nothing>", by="good"),
    C("a file that is no key", "IdentityFile <rubbish>", by="good"),
    C("an unknown key", "", NONE_TAKEN, identity="<stranger>"),
    C("RSA", identity="<rsa>", by="rsa"),
    C("RSA in PEM", identity="<pem>", by="rsa"),
    C("ECDSA", identity="<ecdsa>", by="ecdsa"),
    C(
        "a damaged certificate beside it",
        identity="<dir>/id",
        by="good",
        files={"id": "<<good", "id-cert.pub": "ssh-ed25519-cert-v01@openssh.com AAAA\n"},
    ),
    C("a file that others can read", "", "can be read by others: chmod 600", identity="<open>"),
    C("a passphrase", "", "protected by a passphrase: ssh-add", identity="<locked>"),
    C(
        "a passphrase, and in the agent",
        NAMED_ONLY,
        identity="<locked>",
        by="locked",
        environment={"SSH_AUTH_SOCK": "<agent:locked>"},
    ),
    C("no file at all", "", NO_KEY, identity="none"),
    C("the agent", identity="none", by="good", environment=AGENT),
    C(
        "an RSA key in the agent",
        identity="none",
        by="rsa",
        environment={"SSH_AUTH_SOCK": "<agent:rsa>"},
    ),
    C(
        "a public file, and the agent",
        NAMED_ONLY,
        identity="<good.pub>",
        by="good",
        environment=AGENT,
    ),
    C("a public file alone", "", NO_KEY, identity="<good.pub>"),
    C("IdentitiesOnly without a file", NAMED_ONLY, NO_KEY, identity="none", environment=AGENT),
    C(
        "IdentitiesOnly with another file",
        NAMED_ONLY,
        NONE_TAKEN,
        identity="<stranger>",
        environment=AGENT,
    ),
    C("IdentityAgent", "IdentityAgent <agent:good>", identity="none", by="good"),
    C("IdentityAgent none", "IdentityAgent none", NO_KEY, identity="none", environment=AGENT),
    C(
        "IdentityAgent SSH_AUTH_SOCK",
        "IdentityAgent SSH_AUTH_SOCK",
        identity="none",
        environment=AGENT,
    ),
    C(
        "IdentityAgent by a name of a variable",
        "IdentityAgent $XENLAB_AGENT",
        identity="none",
        environment={"XENLAB_AGENT": "<agent:good>"},
    ),
    C(
        "IdentityAgent by a variable",
        "IdentityAgent ${XENLAB_AGENT}",
        identity="none",
        environment={"XENLAB_AGENT": "<agent:good>"},
    ),
    C(
        "IdentityAgent wins",
        "IdentityAgent <agent:second>",
        identity="none",
        by="second",
        environment=AGENT,
    ),
    C("IdentityAgent is missing", "IdentityAgent <nothing>", by="good", environment=AGENT),
    C("no agent listens", by="good", environment={"SSH_AUTH_SOCK": "<dir>/nothing"}),
    C("the agent before files", "", by="second", environment={"SSH_AUTH_SOCK": "<agent:second>"}),
    C(
        "the file's key in the agent first",
        by="good",
        environment={"SSH_AUTH_SOCK": "<agent:second+good>"},
    ),
    C("eight keys before the right one", "", TOO_MANY, identity="none", environment=MANY),
    C("eight keys, and a file that is in the agent", by="good", environment=MANY),
    C(
        "eight keys, and IdentitiesOnly",
        NAMED_ONLY,
        identity="<second>",
        by="second",
        environment=MANY,
    ),
    C(
        "eight keys, and a file that is not in the agent",
        "",
        TOO_MANY,
        identity="<second>",
        environment=MANY,
    ),
    C("a FIDO key in the agent", identity="none", environment={"SSH_AUTH_SOCK": "<agent:token>"}),
    C(
        "a FIDO key in file and agent",
        NAMED_ONLY,
        identity="<token>",
        environment={"SSH_AUTH_SOCK": "<agent:token>"},
    ),
    C("a FIDO key without the token", "", "only an agent can use: ssh-add", identity="<token>"),
    C("a FIDO key without the token, then a file", "IdentityFile <token>", by="good"),
    C("a certificate beside the key", identity="<certain>", **TRUSTING),
    C("CertificateFile", "CertificateFile <certain-cert.pub>", identity="<certain>", **TRUSTING),
    C(
        "CertificateFile elsewhere",
        "CertificateFile <alone-cert.pub>",
        identity="<certain>",
        **TRUSTING,
    ),
    C(
        "CertificateFile by tokens",
        "CertificateFile <dir>/../../%u-is-%r-cert.pub\nCertificateFile <certain-cert.pub>",
        identity="<certain>",
        **TRUSTING,
    ),
    C(
        "CertificateFile of another key",
        "CertificateFile <certain-cert.pub>",
        "is for a key that",
        **TRUSTING,
    ),
    C(
        "CertificateFile, and the key in the agent",
        "CertificateFile <certain-cert.pub>",
        identity="none",
        environment={"SSH_AUTH_SOCK": "<agent:certain>"},
        **TRUSTING,
    ),
    C(
        "a certificate in the agent",
        identity="none",
        environment={"SSH_AUTH_SOCK": "<agent:certain>"},
        **TRUSTING,
    ),
    C(
        "an RSA certificate in the agent",
        identity="none",
        environment={"SSH_AUTH_SOCK": "<agent:rsa_certain>"},
        **TRUSTING,
    ),
    C("an RSA certificate", identity="<rsa_certain>", **TRUSTING),
    C(
        "a certificate that expired",
        "",
        r"valid from 2020-01-01 .* until 2021-01-01",
        identity="<outdated>",
        **TRUSTING,
    ),
    C("a certificate of somebody else", "", NONE_TAKEN, identity="<elsewhere>", **TRUSTING),
    C("a certificate by another authority", "", NONE_TAKEN, identity="<forged>", **TRUSTING),
    C(
        "a host's certificate",
        "CertificateFile <host_good-cert.pub>",
        NONE_TAKEN,
        identity="<host_good>",
        **TRUSTING,
    ),
    C("a certificate that nobody trusts, and its key", by="good", config="IdentityFile <certain>"),
    C("from= of another address", "", NONE_TAKEN, identity="<forged>"),
    C("two keys wanted", "IdentityFile <second>", server="twofold"),
    C("two keys wanted, one there", "", NONE_TAKEN, server="twofold"),
    C(
        "two keys wanted, both in the agent",
        identity="none",
        server="twofold",
        environment={"SSH_AUTH_SOCK": "<agent:good+second>"},
    ),
    C("PubkeyAuthentication no", "PubkeyAuthentication no", NO_KEY + "|accepts none"),
    C("PreferredAuthentications password", "PreferredAuthentications password", "cannot log in"),
    C("PreferredAuthentications", "PreferredAuthentications publickey", by="good"),
    C(
        "PubkeyAcceptedAlgorithms",
        "PubkeyAcceptedAlgorithms rsa-sha2-256",
        by="rsa",
        identity="<rsa>",
    ),
    C(
        "PubkeyAcceptedAlgorithms without the key's",
        "PubkeyAcceptedAlgorithms rsa-sha2-256",
        "which the ssh_config excludes",
    ),
    C("BatchMode", "BatchMode yes", by="good"),
    C("a password is wanted", "", "asks for a password, and nobody can be asked", server="keyless"),
    C("a password is wanted, BatchMode", "BatchMode yes", "BatchMode says", server="keyless"),
    C("another user", "User xenlab-nobody", NONE_TAKEN),
]

HOST = socket.gethostname()
TOKENS = {
    "%h": ADDRESS,
    "%p": "<port>",
    "%r": ME,
    "%n": "box",
    "%k": "box",
    "%L": HOST.partition(".")[0],
    "%l": HOST,
    "%i": str(os.getuid()),
    "%u": ME,
    "%C": "<hash>",
    "%%": "%",
    "${XENLAB_PLACE}": "here",
    "%r@%h:%p": f"{ME}@{ADDRESS}:<port>",
}
MATCHED = "{}\n  IdentityFile <good>\n"
HOP = "Host hop\n  Port <hop:port>\n"
JUMP = "Host box\n  ProxyJump hop\n"
BOTH = PINNED + f"[{ADDRESS}]:<hop:port> <hop:key>\n"

CONFIGURATION = [
    *(
        C(
            f"{token} in IdentityFile",
            f"IdentityFile <dir>/key-{token}",
            identity="none",
            by="good",
            files={f"key-{stands_for}": "<<good"},
            environment={"XENLAB_PLACE": "here"},
        )
        for token, stands_for in TOKENS.items()
    ),
    C(
        "%k is HostKeyAlias",
        "HostKeyAlias castle\nIdentityFile <dir>/key-%k",
        identity="none",
        known="castle <hostkey>\n",
        files={"key-castle": "<<good"},
    ),
    C("an unknown token", "IdentityFile <dir>/key-%Z", "%Z is no token"),
    C(
        "a variable that is not set",
        "IdentityFile <dir>/${XENLAB_NOTHING}",
        "XENLAB_NOTHING is not set",
    ),
    *(
        C(line, MATCHED.format(line), identity="none", by="good")
        for line in (
            "Host b?x",
            "Host * !castle",
            "Match all",
            "Match host box",
            "Match originalhost box",
            f"Match user {ME}",
            f"Match localuser {ME}",
            "Match exec true",
            'Match exec "test %n = box"',
            'Match exec "test %r = ' + ME + '"',
            "Match !exec false",
            "Match host box,castle exec true",
            "Match final",
            "Match final originalhost box",
        )
    ),
    *(
        C(f"not {line}", MATCHED.format(line), NO_KEY, identity="none")
        for line in (
            "Host castle",
            "Host b?x !box",
            "Match host castle",
            "Match user somebody",
            "Match exec false",
            "Match originalhost castle",
        )
    ),
    C("Include", "Include <dir>/more", identity="none", files={"more": "IdentityFile <good>\n"}),
    C(
        "Include of a pattern",
        "Include <dir>/*.conf",
        identity="none",
        files={"a.conf": "IdentityFile <good>\n", "b.conf": "Host castle\n  Port 1\n"},
    ),
    C("Include of nothing", "Include <dir>/*.conf", by="good"),
    C("the first value wins", "User " + ME + "\nHost box\n  User somebody\n", by="good"),
    C(
        "key = value",
        f'Port=<port>\nUser = {ME}\nIdentityFile="<good>"',
        identity="none",
        by="good",
    ),
    C("an unknown option", "Nonsense yes", "Bad configuration option"),
    C("an unknown option that may be there", "IgnoreUnknown Nonsense\nNonsense yes"),
    C("another name", f"Host castle\n  HostName {ADDRESS}\n", host="castle"),
    C("HostName by %h", "Host 127\n  HostName %h.0.0.1\n", host="127"),
    C(
        "CanonicalizeHostname",
        "CanonicalizeHostname always\nMatch canonical all\n  IdentityFile <good>",
        identity="none",
    ),
    C("a name that nobody knows", "HostName nowhere.invalid", "nowhere.invalid"),
    C("AddressFamily inet", "AddressFamily inet"),
    C("AddressFamily inet6", "AddressFamily inet6", "has no address of the family inet6"),
    C("BindAddress", "BindAddress 127.0.0.1"),
    C("BindAddress that is not here", "BindAddress 192.0.2.77", "annot assign requested address"),
    C("ConnectTimeout", "ConnectTimeout 60"),
    C("nobody listens", "Port 1", "nobody listens there"),
    C("Ciphers", "Ciphers aes256-ctr"),
    C(
        "Ciphers of another kind",
        "Ciphers chacha20-poly1305@openssh.com",
        "does not have",
        differs=ENGINE,
    ),
    C(
        "Ciphers that the machine lacks",
        "",
        "no algorithm in common",
        server="picky",
        differs=ENGINE,
    ),
    C("MACs", "MACs hmac-sha2-512\nCiphers aes128-ctr"),
    C("KexAlgorithms", "KexAlgorithms ecdh-sha2-nistp384"),
    C("Compression", "Compression yes"),
    C("ForwardAgent", "ForwardAgent yes", identity="none", environment=AGENT),
    C("a banner, one session, few logins at once", server="one"),
]

WAYS = [
    C("ProxyCommand", "Host box\n  ProxyCommand ssh -F <config> -W %h:%p hop\n" + HOP, known=BOTH),
    C(
        "ProxyCommand by tokens",
        "Host box\n  ProxyCommand ssh -F <config> -l %r -W %h:%p -- hop\n" + HOP,
        known=BOTH,
    ),
    C("ProxyCommand none", "ProxyCommand none"),
    C("ProxyCommand that fails", "ProxyCommand echo no way >&2; false", "no way"),
    C(
        "ProxyCommand, and the key of the target",
        "Host box\n  ProxyCommand ssh -F <config> -W %h:%p hop\n" + HOP,
        UNKNOWN,
        known=f"[{ADDRESS}]:<hop:port> <hop:key>\n",
    ),
    C("ProxyJump", JUMP + HOP, known=BOTH),
    C("ProxyJump none", "ProxyJump none\n" + JUMP),
    C("ProxyJump with user and port", f"Host box\n  ProxyJump {ME}@hop:<hop:port>\n", known=BOTH),
    C("ProxyJump by ssh://", f"Host box\n  ProxyJump ssh://{ME}@hop:<hop:port>\n", known=BOTH),
    C(
        "ProxyJump over two",
        f"Host box\n  ProxyJump {ME}@hop:<hop:port>,far\nHost far\n  Port <many:port>\n",
        known=BOTH + f"[{ADDRESS}]:<many:port> <many:key>\n",
    ),
    C(
        "ProxyJump of the hop itself",
        JUMP + HOP + "  ProxyJump far\nHost far\n  Port <many:port>\n",
        known=BOTH + f"[{ADDRESS}]:<many:port> <many:key>\n",
    ),
    C(
        "ProxyJump of all",
        "Host far\n  Port <many:port>\nHost * !far\n  ProxyJump far\n",
        known=PINNED + f"[{ADDRESS}]:<many:port> <many:key>\n",
    ),
    C("the hop's key is unknown", JUMP + HOP, UNKNOWN),
    C(
        "the hop's key has changed",
        JUMP + HOP,
        CHANGED,
        known=PINNED + f"[{ADDRESS}]:<hop:port> <stranger:public>\n",
    ),
    C(
        "the target's key is unknown",
        JUMP + HOP,
        UNKNOWN,
        known=f"[{ADDRESS}]:<hop:port> <hop:key>\n",
    ),
    C(
        "the hop has a key of its own",
        JUMP + HOP + "  IdentityFile <second>\nHost box\n  IdentityFile <good>\n",
        identity="none",
        by="good",
        known=BOTH,
    ),
    C(
        "the hop lets nobody in",
        JUMP + HOP + "  User somebody\n",
        "cannot log in as somebody",
        known=BOTH,
    ),
    C("the hop is certified", JUMP + "Host hop\n  Port <certified:port>\n", known=PINNED + CA),
    C(
        "the hop by HostKeyAlias",
        JUMP + HOP + "  HostKeyAlias bridge\n",
        known=PINNED + "bridge <hop:key>\n",
    ),
    C("the hop is down", JUMP + "Host hop\n  Port 1\n", "nobody listens there", known=BOTH),
    C("a hop that is no host", "Host box\n  ProxyJump a:b:c\n", "a:b:c"),
]

DROPBEAR = {"server": "dropbear"}
NO_SHELL = "xenlab needs a shell that runs commands"
OLD = (
    "HostKeyAlgorithms ssh-rsa\nKexAlgorithms diffie-hellman-group14-sha1\n"
    "Ciphers aes128-cbc\nMACs hmac-sha1"
)

SERVERS = [
    C("a forced command that runs the one asked for", server="obedient", by="good"),
    C("a forced command of its own", "", "only backups here", server="stubborn", differs=NO_SHELL),
    C(
        "command= in authorized_keys",
        "",
        "only a clock",
        identity="<forced>",
        differs=NO_SHELL,
    ),
    C("a router of old", "", "no algorithm in common", server="router"),
    C(
        "a router of old, its algorithms allowed",
        OLD,
        "does not have",
        server="router",
        known=f"[{ADDRESS}]:<port> <host_rsa:public>\n",
        differs=ENGINE,
    ),
    C("dropbear", **DROPBEAR),
    C("dropbear, its key is unknown", "", UNKNOWN, known="", **DROPBEAR),
    C("dropbear, its key has changed", "", CHANGED, known=OTHER, **DROPBEAR),
    C("dropbear, accept-new", "StrictHostKeyChecking accept-new", known="", **DROPBEAR),
    C(
        "dropbear, its RSA key is pinned",
        known=f"[{ADDRESS}]:<port> <sshd-dropbear/dropbear_rsa:public>\n",
        **DROPBEAR,
    ),
    C(
        "dropbear, its ECDSA key is pinned",
        known=f"[{ADDRESS}]:<port> <sshd-dropbear/dropbear_ecdsa:public>\n",
        **DROPBEAR,
    ),
    C("dropbear, an RSA key", identity="<rsa>", **DROPBEAR),
    C("dropbear, an ECDSA key", identity="<ecdsa>", **DROPBEAR),
    C("dropbear, the agent", identity="none", environment=AGENT, **DROPBEAR),
    C(
        "dropbear, a FIDO key",
        identity="none",
        environment={"SSH_AUTH_SOCK": "<agent:token>"},
        **DROPBEAR,
    ),
    C("dropbear, a certificate", "", NONE_TAKEN, identity="<certain>", **DROPBEAR),
    C("dropbear, a certificate, then a key", "IdentityFile <certain>", **DROPBEAR),
    C("dropbear, an unknown key", "", NONE_TAKEN, identity="<stranger>", **DROPBEAR),
    C(
        "dropbear, an unknown key, and no passwords",
        "",
        NONE_TAKEN,
        identity="<stranger>",
        server="dropbear-strict",
    ),
    C("dropbear, from= of another address", "", NONE_TAKEN, identity="<forged>", **DROPBEAR),
    C("dropbear, another user", "User xenlab-nobody", NONE_TAKEN, **DROPBEAR),
    C("dropbear, eight keys, and a file", environment=MANY, **DROPBEAR),
    C("dropbear, a banner", server="dropbear-strict"),
    # unlike OpenSSH's, it does not count the keys that it is only shown
    C(
        "dropbear, eight keys before the right one",
        identity="none",
        environment=MANY,
        server="dropbear-strict",
    ),
    C("dropbear, a key and a password wanted", "", "asks for a", server="dropbear-twofold"),
    C("dropbear, a forced command that runs the one asked for", server="dropbear-obedient"),
    C(
        "dropbear, a forced command of its own",
        "",
        "only backups here",
        server="dropbear-stubborn",
        differs=NO_SHELL,
    ),
    C("dropbear, Compression", "Compression yes", **DROPBEAR),
    C("dropbear, Ciphers", "Ciphers aes256-ctr", **DROPBEAR),
    C("dropbear, Ciphers that it lacks", "Ciphers aes256-cbc", "cannot connect", **DROPBEAR),
    C(
        "ProxyJump over dropbear",
        JUMP + "Host hop\n  Port <dropbear:port>\n",
        known=PINNED + f"[{ADDRESS}]:<dropbear:port> <dropbear:key>\n",
    ),
    C("ProxyJump to dropbear", JUMP + HOP, known=BOTH, **DROPBEAR),
]

CASES = [*KNOWN_HOSTS, *KEYS, *CONFIGURATION, *WAYS, *SERVERS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("logins"))
    box = world.server("box")
    for name, file in (("box", box.host_key), ("stranger", world.folder / "stranger")):
        command = ["ssh-keygen", "-q", "-k", "-f", str(world.folder / f"{name}.krl")]
        subprocess.run([*command, f"{file}.pub"], check=True)
    (world.folder / "serials").write_text("serial: 7\n")
    command = ["ssh-keygen", "-q", "-k", "-f", str(world.folder / "serial.krl"), "-s"]
    subprocess.run(
        [*command, str(world.folder / "host_ca.pub"), str(world.folder / "serials")], check=True
    )
    yield world
    world.end()


class Client:
    """One of the two that log in: its folder, with the case's files."""

    def __init__(self, world: World, case: Case, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.config, self.known = folder, folder / "config", folder / "known_hosts"
        self.case = case
        self._world = world
        server = world.server(case.server)
        self._values = {
            "dir": str(folder),
            "config": str(self.config),
            "known": str(self.known),
            "port": str(server.port),
            "hostkey": server.public_key,
        }
        self._values["identity"] = self.filled(case.identity)
        self.known.write_text(self._known())
        # the first of two lines counts, except where each of them does
        self.config.write_text(self.filled(f"{case.config}\n{BASE}"))
        if any("<hash>" in name for name in case.files):
            self._values["hash"] = self._hash()
        for name, text in case.files.items():
            path = folder / self.filled(name)
            key = text.removeprefix("<<")
            if key != text:
                path.write_bytes((world.folder / key).read_bytes())
                path.chmod(0o600)
            else:
                path.write_text(self.filled(text))

    def filled(self, text: str) -> str:
        return self._world.filled(text, **self._values)

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("SSH_AUTH_SOCK", "SSH_ASKPASS")}
        return kept | {name: self.filled(v) for name, v in self.case.environment.items()}

    def names(self) -> list[str]:
        """Which lines known_hosts has now, but for a hashed name's salt."""
        lines = self.known.read_text().splitlines()
        return [re.sub(r"^\|1\|\S+", "|1|", line) for line in lines]

    def _known(self) -> str:
        known = self.case.known
        hashed = {"<hashed>": PINNED, "<hashed-other>": "castle <hostkey>\n"}.get(known)
        if hashed is None:
            return self.filled(known)
        file = self.folder / "hashed"
        file.write_text(self.filled(hashed))
        command = ["ssh-keygen", "-q", "-H", "-f", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        return file.read_text()

    def _hash(self) -> str:
        command = [
            "ssh",
            "-G",
            "-T",
            "-F",
            str(self.config),
            "-o",
            "ControlPath=%C",
            self.case.host,
        ]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return next(line.split()[1] for line in out.splitlines() if line.startswith("controlpath"))


@contextmanager
def ssh_running(client: Client) -> Iterator[subprocess.Popen[str]]:
    """OpenSSH's client while it logs in, without a terminal, so that nobody is asked."""
    process = subprocess.Popen(
        ["ssh", "-T", "-F", str(client.config), client.case.host, ASK],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=client.environment(),
    )
    try:
        yield process
    finally:
        # the jumps that it has started as well
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def by_xenlab(
    client: Client, patch: pytest.MonkeyPatch, told: Callable[[str], None] = lambda line: None
) -> tuple[str, str]:
    """What the command printed, "" if nobody got in, and why not; a person is ``told`` the rest."""
    patch.delenv("SSH_AUTH_SOCK", raising=False)
    for name, value in client.environment().items():
        patch.setenv(name, value)
    target = Target(client.case.host, config=str(client.config))
    ssh = SSH(target, connect_timeout=60, wait=Wait(say=told))
    try:
        return ssh.execute(ASK, timeout=60)[1].decode(), ""
    except (NoConnection, BadInput) as error:
        return "", str(error)
    finally:
        ssh.close()


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, whoever runs the tests: a password is asked for in `test_asking`."""

    def nobody(prompt: str) -> str:
        raise NotImplementedError(prompt)

    monkeypatch.setattr("getpass.getpass", nobody)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_xenlab_gets_in_where_ssh_does(
    case: Case, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh, xenlab = (Client(world, case, tmp_path / name) for name in ("ssh", "xenlab"))
    with ssh_running(ssh) as process:
        ours, why = by_xenlab(xenlab, monkeypatch)
        out, said = process.communicate(timeout=120)
        theirs = out if process.returncode == 0 else ""
    assert bool(theirs) == (not case.refused or bool(case.differs)), f"ssh: {said}"
    if case.refused:
        assert not ours, f"ssh says: {said}"
        assert re.search(case.refused, why), why
        assert "cannot " in why and "\nTry: " in why, why
        return
    assert ours == theirs, f"{why}\nssh says: {said}"
    assert xenlab.names() == ssh.names()
    if case.by:
        assert f"publickey {world.public(case.by)}\n" in ours


def test_who_has_a_token_is_told_to_touch_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.name == "a FIDO key in the agent")
    told: list[str] = []
    ours, why = by_xenlab(Client(world, case, tmp_path / "xenlab"), monkeypatch, told.append)
    assert ours, why
    assert [line for line in told if line.startswith("touch the security key of ")] == told != []


def test_there_are_enough_cases() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 150
