"""Whether a run is still what it was: the journal's chain, the files it names, the signature."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from xenlab import durable
from xenlab.durable import kept_file, locked_folder
from xenlab.errors import BadInput, JournalDamaged
from xenlab.journal import HEAD, RESERVE, Chain, Journal, read_chain
from xenlab.runs import folder as runs

NAMESPACE = "xenlab-run"
"""What a signature is for: one made for something else does not count (ssh-keygen(1), -n)."""

FILE_NAMESPACE = "xenlab-plan"
"""The same for a plan's file, of which the signature covers each byte."""

STATEMENT = "journal.signed"
"""What is signed: the run's name, the number of its records and the head of its journal."""

SIGNATURE = f"{STATEMENT}.sig"

UNNAMED = ("journal.jsonl", HEAD, RESERVE, STATEMENT, SIGNATURE, "run.lock")
"""What no record names: the journal, its signature and the run's lock."""

REPORT = "report.html"

PARTIAL = (".run.json.new", f".{REPORT}.new", f".{STATEMENT}.new", "input/.*.new")
"""Files that an interruption left before they were whole."""

LEFT = (
    "/run.json",
    "/plan.json*",
    "/*.ipynb",
    "/kernels*.log",
    "/output/*",
    "/input/*",
    "/console/*",
)
"""What a run leaves, named by a record in the end; an interruption may come before that."""

SECONDS = 60.0


@dataclass(frozen=True)
class Audit:
    """What was found: numbers of records and files, the head, who signed, and what is wrong.

    ``cut`` says what an interruption explains, and nobody needs to have changed; ``problems`` are
    what it does not.
    """

    records: int
    files: int
    head: str
    signed_by: str
    problems: tuple[str, ...]
    cut: tuple[str, ...] = ()


def record_files(folder: Path) -> None:
    """Record the digest of each file of a run that no record names yet; each is on disk then.

    What an interruption left unfinished is removed. Raises DiskFull.
    """
    journal = Journal(folder)
    with locked_folder(folder):
        for shape in PARTIAL:
            for place in folder.glob(shape):
                place.unlink()
    named = dict(_named(journal.records()))
    for path in _files(folder):
        # what is no regular file is nothing that a run makes: nobody vouches for it
        if path not in named and stat.S_ISREG((folder / path).lstat().st_mode):
            with durable.space(folder):
                durable.sync(folder / path)
                durable.sync((folder / path).parent)
            journal.append(phase="kept", path=path, sha256=digest_of(folder / path))


def end(folder: Path, status: int) -> None:
    """Record a run's files and its end; raises DiskFull where there is no space even for that."""
    record_files(folder)
    Journal(folder).append(phase="end", status=status)


def inspect(folder: Path, signers: Path | None = None) -> Audit:
    """Hold a run against its journal, and the journal against its signature; changes nothing.

    ``signers`` is a file of the keys that count (ssh-keygen(1), ALLOWED SIGNERS); with it, a run
    that none of them signed has a problem. Raises BadInput where there is no journal.
    """
    runs.require_whole(folder, "verify the files of")
    path = folder / "journal.jsonl"
    if not path.exists() and {*_files(folder)} - {*PARTIAL} != {"run.json"}:
        raise BadInput(
            "cannot verify this run: because it has no journal",
            where=str(folder),
            hint="name a run that `xenlab runs` lists",
        )
    _require_signers(signers)
    try:
        chain = read_chain(path)
    except JournalDamaged as error:
        return Audit(0, 0, "", "", (error.message,))
    named = dict[str, list[str]]()
    for name, digest in _named(chain.records):
        named.setdefault(name, []).append(digest)
    cut, problems = list(_cut(chain)), list[str]()
    for name, digests in named.items():
        if said := _compare(folder, name, digests[-1]):
            if cut and name == REPORT and _older(folder / name, digests):
                cut.append(f"{name}: cut short before the new one took its place")
            else:
                problems.append(said)
    try:
        signed_by, complaint = _signature(folder, _statement(folder, chain), signers)
    except JournalDamaged as error:
        signed_by, complaint = "", error.message
    for name in [name for name in _files(folder) if name not in named]:
        # all that a run had left was recorded before it was signed
        explained = cut and not signed_by and _left(folder / name, name)
        said = "no record names it yet" if explained else "no record names it"
        (cut if explained else problems).append(f"{name}: {said}")
    problems += [complaint] if complaint else []
    count = len(chain.records)
    return Audit(count, len(named), chain.head, signed_by, tuple(problems), tuple(cut))


def _left(place: Path, name: str) -> bool:
    """Whether a file may be there because an interruption came before its record."""
    shapes = (*LEFT, *(f"/{shape}" for shape in PARTIAL))
    known = any(PurePath(f"/{name}").match(shape) for shape in shapes)
    return known and stat.S_ISREG(place.lstat().st_mode)


def _cut(chain: Chain) -> Iterator[str]:
    """What a journal's end says of an interruption."""
    if chain.torn:
        yield f"cut off in record {len(chain.records) + 1}, which was not on disk yet"
    if chain.behind or chain.head_cut:
        yield f"cut off when {HEAD} was not on disk yet"
    begun, opened, again, full = False, dict[str, None](), dict[str, None](), False
    for record in chain.records:
        phase, chapter = record.get("phase"), str(record.get("chapter", ""))
        if phase in ("begin", "end"):
            # what an interruption left was recorded before either
            begun, full = phase == "begin", full and phase == "end"
            opened.clear()
            again.clear()
        elif phase == "open":
            if chapter in opened:
                again[chapter] = None
            opened[chapter], full = None, False
        elif phase == "close":
            opened.pop(chapter, None)
        elif phase == "full":
            full = True
    if full:
        yield "cut short: the disk was full"
    elif opened:
        yield f"cut short in {', '.join(opened)}: no record says that it ended"
    elif again:
        yield f"cut short in {', '.join(again)}, which was opened again without an end"
    elif begun or not chain.records:
        yield "cut short: no record says that the run ended"


def sign(folder: Path, key: Path) -> Path:
    """Sign a run as it is now with an SSH key (ssh-keygen(1), -Y sign); return the signature.

    What an interruption left gets its record first: raises BadInput while the run goes on.
    ``key`` is the private key's file, or the public one's where an agent holds the private. What
    does not hold is not signed: raises JournalDamaged then, BadInput where the key cannot sign.
    """
    found = inspect(folder)
    if found.problems:
        raise JournalDamaged(
            found.problems[0],
            where=str(folder),
            hint="start a new run; a damaged one is not signed",
        )
    with runs.run_lock(folder):
        record_files(folder)
    statement = folder / STATEMENT
    (folder / SIGNATURE).unlink(missing_ok=True)
    durable.replace(statement, _statement(folder, read_chain(folder / "journal.jsonl")).encode())
    try:
        return sign_file(statement, key, NAMESPACE)
    except BadInput:
        statement.unlink()
        raise


def sign_file(place: Path, key: Path, namespace: str = FILE_NAMESPACE) -> Path:
    """Sign a file with an SSH key, as it is now; return the signature, which lies beside it.

    Raises BadInput where the key cannot sign.
    """
    signature_of(place).unlink(missing_ok=True)
    done = _keygen("sign", "-f", str(key), "-n", namespace, str(place))
    if done.returncode:
        raise BadInput(
            f"cannot sign with this key: because {done.stderr.strip()}",
            where=str(key),
            hint="name a private key, or the public one of a key that an agent holds",
        )
    return signature_of(place)


def signature_of(place: Path) -> Path:
    """Where the signature of a file lies."""
    return place.with_name(f"{place.name}.sig")


def file_signed_by(place: Path, text: str, signers: Path | None = None) -> tuple[str, str]:
    """Who signed a file that holds ``text``, and what is wrong with that.

    ``signers`` as for `inspect`. Raises BadInput.
    """
    _require_signers(signers)
    signature = signature_of(place)
    if not signature.exists():
        return "", "nobody has signed it" if signers else ""
    return _who(text, signature, signers, FILE_NAMESPACE, place.name)


def statement_signed_by(
    folder: Path, records: int, head: str, signers: Path | None
) -> tuple[str, str]:
    """Who signed a run with that many records and this head, and what is wrong with that."""
    _require_signers(signers)
    return _signature(folder, _stated(folder, records, head), signers)


def _statement(folder: Path, chain: Chain) -> str:
    return _stated(folder, len(chain.records), chain.head)


def _stated(folder: Path, records: int, head: str) -> str:
    return f"run {folder.name}\nrecords {records}\nhead {head}\n"


def _signature(folder: Path, statement: str, signers: Path | None) -> tuple[str, str]:
    """Who signed a run, and what is wrong with that."""
    place, signature = kept_file(folder, STATEMENT), kept_file(folder, SIGNATURE)
    if not signature.exists() or not place.exists():
        half = signature.exists() or place.exists()
        return "", "nobody has signed it" if signers or half else ""
    said = place.read_text(errors="replace")
    who, complaint = _who(said, signature, None, NAMESPACE, STATEMENT)
    if complaint:
        return "", complaint
    if said != statement:
        return "", f"{SIGNATURE} is of another state of the run: it went on, or was changed, since"
    return _who(said, signature, signers, NAMESPACE, STATEMENT) if signers else (who, "")


def _require_signers(signers: Path | None) -> None:
    if signers is not None and not signers.is_file():
        raise BadInput(
            "cannot tell who signed: because there is no such file of signers",
            where=str(signers),
            hint="name a file as ssh-keygen(1) describes under ALLOWED SIGNERS",
        )


def _who(
    said: str, signature: Path, signers: Path | None, namespace: str, name: str
) -> tuple[str, str]:
    """Whose signature of a text it is, and what is wrong with that; ``name`` holds the text."""
    words = ["-n", namespace, "-s", str(signature)]
    whole = _keygen("check-novalidate", *words, said=said)
    if whole.returncode:
        return "", f"the signature is not one of what stands in {name}"
    who = whole.stdout.strip().rpartition(" with ")[2]
    if signers is None:
        return f"{who}, which nobody was asked about", ""
    names = _keygen("find-principals", "-s", str(signature), "-f", str(signers)).stdout.split()
    for principal in names:
        words_of = (*words, "-f", str(signers), "-I", principal)
        if not _keygen("verify", *words_of, said=said).returncode:
            return f"{principal}, {who}", ""
    return "", f"it was signed by {who}, which {signers} does not name"


def signed(folder: Path) -> bool:
    """Whether a run is signed as it is now, whoever's the signature is."""
    chain = read_chain(folder / "journal.jsonl")
    return bool(_signature(folder, _statement(folder, chain), None)[0])


def last_digest(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """The digest of a file that records name, the last one; "" where none does."""
    return dict(_named(records)).get(name, "")


def digest_of(place: Path) -> str:
    """The SHA-256 of a file; "" where there is none."""
    if not place.is_file():
        return ""
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keygen(action: str, *words: str, said: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["ssh-keygen", "-Y", action, *words]
    try:
        return subprocess.run(
            command, input=said, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError:
        raise BadInput(
            "cannot look at signatures: because ssh-keygen is not installed",
            hint="install openssh-client",
        ) from None


def _named(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The files that records name, each with its digest."""
    for record in records:
        if record.get("phase") in ("begin", "kept"):
            yield str(record["path"]), str(record["sha256"])
        commands = record.get("commands") or ()
        given = [c["input"] for c in commands if "input" in c]
        printed = [c["output"] for c in commands if isinstance(c.get("output"), dict)]
        for file in (*given, *printed, *(record.get("attachments") or ())):
            yield str(file["path"]), str(file["sha256"])


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({str(path.relative_to(folder)) for path in found} - {*UNNAMED})


def _older(report: Path, digests: Sequence[str]) -> bool:
    """Whether a report is the one before, or none: it is recorded before it takes its place."""
    if report.is_symlink():
        return False
    return not report.exists() or digest_of(report) in digests


def _compare(folder: Path, name: str, digest: str) -> str:
    try:
        path = kept_file(folder, name)
    except JournalDamaged as error:
        return error.message
    if not path.is_file():
        return f"{name}: it is gone"
    if digest_of(path) != digest:
        return f"{name}: it was changed since it was recorded"
    return ""
