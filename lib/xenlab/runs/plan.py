"""A plan that is kept: what each step would do, and what that rests on; signed, and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenlab import durable
from xenlab.chapter.planned import FILE, as_planned, look_digest
from xenlab.chapter.step import REFUSED
from xenlab.errors import BadInput
from xenlab.journal import read_chain
from xenlab.runs import audit
from xenlab.runs import folder as runs
from xenlab.runs.folder import StepState

FORMAT = 1
"""The form of a plan's file; another one is refused."""

SIGNATURE = ".sig"
"""What the name of a signature ends with, beside that of the plan."""

AGAIN = "make another plan with `xenlab plan --save`"


@dataclass(frozen=True)
class Approved:
    """A plan that a run applies: its bytes, those of its signature, who signed, what is allowed."""

    text: bytes
    signature: bytes = b""
    signed_by: str = ""
    unforeseen: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {
            "sha256": hashlib.sha256(self.text).hexdigest(),
            "signed_by": self.signed_by,
            "unforeseen": self.unforeseen,
        }

    def keep(self, folder: Path) -> None:
        """Put it into the folder of the run."""
        durable.create(folder / FILE, self.text)
        if self.signature:
            durable.create(folder / f"{FILE}{SIGNATURE}", self.signature)


def document(folder: Path, destroy: Iterable[str], notebooks: Mapping[str, str]) -> dict[str, Any]:
    """The plan that a run in mode plan has made, which ended well.

    ``destroy`` names what may be destroyed, ``notebooks`` the digest of each chapter's cells.
    """
    record = runs.read(folder)
    steps = [
        {"chapter": chapter.name, **_step(folder, step)}
        for chapter in runs.states(folder)
        for step in chapter.steps
    ]
    chain = read_chain(folder / "journal.jsonl")
    made = {
        "format": FORMAT,
        "site": record["site"],
        "planned": record["started"],
        "operator": chain.records[0]["operator"],
        "run": folder.name,
        "head": chain.head,
        **{key: record[key] for key in ("file", "overrides", "parameters", "left_out")},
        "parameters_sha256": digest_of(record["parameters"]),
        "destroy": list(destroy),
        "chapters": dict(notebooks),
        "steps": steps,
    }
    return {**made, "sha256": digest_of(made)}


def digest_of(value: object) -> str:
    """The SHA-256 of a value, whichever way its JSON is laid out."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def as_text(plan: Mapping[str, Any]) -> bytes:
    """A plan as its file holds it."""
    return (json.dumps(plan, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def unforeseen(plan: Mapping[str, Any]) -> list[str]:
    """The steps whose change nobody can foresee, each with what it waits for."""
    return [
        f"{step['title']}: {step['unforeseen']}" for step in plan["steps"] if step["unforeseen"]
    ]


def read(text: bytes, place: Path) -> dict[str, Any]:
    """A plan from its file's bytes; raises BadInput where it is none, or was changed."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("it is no plan of this version")
        if found["sha256"] != digest_of({k: v for k, v in found.items() if k != "sha256"}):
            raise ValueError("it was changed since it was made")
    except (ValueError, KeyError) as error:
        raise BadInput(
            f"cannot read the plan: because {error}", where=str(place), hint=AGAIN
        ) from None
    return found


def approved(place: Path, signers: Path | None, *, allow_unforeseen: bool) -> Approved:
    """A plan's file to be applied, and who signed it.

    With ``signers`` (ssh-keygen(1), ALLOWED SIGNERS) one of them must have. Raises BadInput where
    nobody of them has, where the file is no plan, and for what a run would refuse.
    """
    try:
        text = place.read_bytes()
    except OSError as error:
        raise BadInput(
            f"cannot read the plan: because {error.strerror}", where=str(place), hint=AGAIN
        ) from None
    plan = read(text, place)
    who, complaint = audit.file_signed_by(place, text.decode(), signers)
    if complaint:
        raise BadInput(
            f"cannot apply the plan: because {complaint}",
            where=str(place),
            hint=f"xenlab audit sign {place} --key FILE",
        )
    for step in plan["steps"]:
        if step["status"] == REFUSED:
            raise BadInput(
                f"cannot apply the plan: because step {step['step']} {step['message']}",
                where=str(place),
                hint=f"give what it asks for, and {AGAIN}",
            )
    signature = audit.signature_of(place)
    kept = signature.read_bytes() if signature.is_file() else b""
    return Approved(text, kept, who, allow_unforeseen)


def of_run(folder: Path, record: Mapping[str, Any]) -> Approved | None:
    """The plan that a run applies, None where it applies none; raises BadInput if changed."""
    if not record.get("plan"):
        return None
    said = record["plan"]
    found = Approved(durable.kept_file(folder, FILE).read_bytes(), b"", said["signed_by"])
    if found.record["sha256"] != said["sha256"]:
        raise BadInput(
            f"cannot take up the run {folder.name}: because its {FILE} was changed",
            hint="apply the plan in a new run",
        )
    return Approved(found.text, b"", found.signed_by, bool(said["unforeseen"]))


def _step(folder: Path, step: StepState) -> dict[str, Any]:
    record = step.record
    looks = {
        str(command["command"]): look_digest(command["status"], _printed(folder, command))
        for command in record.get("commands") or ()
        if command["phase"] == "look"
    }
    return {
        "step": step.number,
        "title": step.title,
        "host": record.get("host", ""),
        "status": step.status,
        "message": step.message,
        "unforeseen": record.get("unforeseen", ""),
        "script": record.get("script", ""),
        "differences": [
            as_planned(label, each) for label, each in (record.get("difference") or {}).items()
        ],
        "wipes": record.get("wipes", []),
        "looks": looks,
        "looked": digest_of(looks),
    }


def _printed(folder: Path, command: Mapping[str, Any]) -> bytes:
    output = command.get("output", "")
    if isinstance(output, str):
        return output.encode()
    return durable.kept_file(folder, str(output["path"])).read_bytes()
