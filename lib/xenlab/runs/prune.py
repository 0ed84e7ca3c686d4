"""Old runs give their files away: what is left of each is its head, its signature and a summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xenlab import durable
from xenlab.errors import BadInput, XenlabError
from xenlab.journal import HEAD, Journal, read_chain
from xenlab.runs import audit
from xenlab.runs import folder as runs
from xenlab.runs.folder import PRUNED

STAYS = (PRUNED, "run.json", HEAD, audit.STATEMENT, audit.SIGNATURE, "run.lock")
"""What is left of a run that was pruned."""


def old(folder: Path, keep: int) -> list[Path]:
    """The runs of a folder but for the newest so many of each site, oldest first.

    Those that were pruned whole are none of them, nor are those that `xenlab run` did not start.
    Raises BadInput for a number below 1.
    """
    if keep < 1:
        raise BadInput(f"cannot keep {keep} runs: because the last one stays", hint="--keep 1")
    left: dict[str, int] = {}
    found = []
    for run in reversed(runs.every(folder)):
        if not (run / "run.json").exists():
            continue
        site = _site(run)
        left[site] = left.get(site, keep) - 1
        if left[site] < 0 and any(path.name not in STAYS for path in run.iterdir()):
            found.append(run)
    return found[::-1]


def prune(run: Path) -> None:
    """Leave of a run its head, its signature, ``run.json`` and a summary.

    The summary is on disk before anything goes; what an interruption left goes at the next time.
    Raises BadInput for a run that another process works on, and for one that is not as it was
    recorded: it stays as it is, as evidence.
    """
    with runs.run_lock(run):
        if not (run / PRUNED).exists():
            found = audit.inspect(run)
            if found.problems:
                raise BadInput(
                    f"cannot prune this run: because {found.problems[0]}",
                    where=str(run),
                    hint=f"xenlab audit verify {run.name}",
                )
            text = json.dumps(_summary(run, found), indent=1, ensure_ascii=False) + "\n"
            durable.replace(run / PRUNED, text.encode())
        for path in run.iterdir():
            if path.name in STAYS:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        durable.sync(run)


def verify(run: Path, signers: Path | None) -> tuple[Mapping[str, Any], str, str]:
    """The summary of a pruned run, who signed the run, and what does not hold, "" if all does.

    Its head and its signature are all that can be held against the summary.
    """
    said = runs.pruned(run) or {}
    head, _, _ = durable.kept_file(run, HEAD).read_text().partition(" ")
    if head.strip() != said["head"]:
        return said, "", f"{HEAD} is not the one that was there when the run was pruned"
    digest = audit.digest_of(durable.kept_file(run, "run.json"))
    if digest != said["run_json_sha256"]:
        return said, "", "run.json was changed since the run was pruned"
    who, complaint = audit.statement_signed_by(run, said["records"], said["head"], signers)
    return said, who, complaint


def _summary(run: Path, found: audit.Audit) -> dict[str, Any]:
    record = runs.read(run)
    chain = read_chain(run / "journal.jsonl")
    ends = [r for r in chain.records if r.get("phase") == "end"]
    return {
        "run": run.name,
        **{key: record.get(key, "") for key in ("site", "mode", "started")},
        "status": ends[-1]["status"] if ends else None,
        "chapters": [
            {
                "chapter": chapter.name,
                "status": chapter.status,
                "seconds": chapter.seconds,
                "message": chapter.message,
                "steps": chapter.counts,
            }
            for chapter in runs.states(run)
        ],
        "records": found.records,
        "head": found.head,
        "files": found.files,
        "run_json_sha256": audit.digest_of(run / "run.json"),
        "signed_by": found.signed_by,
        "cut": list(found.cut),
        "pruned": datetime.now(UTC).isoformat(timespec="seconds"),
        "pruned_by": Journal(run).operator,
    }


def _site(run: Path) -> str:
    try:
        return str(runs.read(run).get("site", ""))
    except XenlabError:
        return ""
