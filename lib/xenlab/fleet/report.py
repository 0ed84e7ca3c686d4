"""What a fleet's run leaves to read: a page of hosts and chapters, and all steps as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from xenlab import durable
from xenlab.chapter.card import duration, environment
from xenlab.errors import BadInput
from xenlab.fleet.record import FILE, HostState, Record
from xenlab.runs import audit
from xenlab.runs import folder as folders
from xenlab.runs.folder import ChapterState
from xenlab.runs.report import flat, status_colours

SLOWEST = 10
"""How many of the slowest steps the page has."""

STEPS = ["host", "run", "chapter", "step", "title", "status", "seconds"]

HISTORY = ["fleet_run", "started", *STEPS]

OF_EACH = ("site", "hostname", "ssh.host", "address")
"""What differs between all hosts of a fleet by its nature: it stands in the first table."""


@dataclass(frozen=True)
class HostPage:
    """A host as the page shows it."""

    name: str
    state: HostState
    chapters: Mapping[str, ChapterState]
    parameters: Mapping[str, str]
    link: str


def states(record: Record) -> dict[str, list[ChapterState]]:
    """What the journals say of each host's chapters, of those whose run is here."""
    found = {}
    for host, state in record.hosts.items():
        folder = record.folder.parent / state.run
        if state.run and folder.is_dir():
            found[host] = folders.states(folder)
    return found


def steps(record: Record) -> pd.DataFrame:
    """The last state of each step of each host, with the columns of `STEPS`."""
    rows = [
        (host, record.hosts[host].run, c.name, step.number, step.title, step.status, step.seconds)
        for host, chapters in states(record).items()
        for c in chapters
        for step in c.steps
    ]
    return pd.DataFrame(rows, columns=STEPS)


def history(runs: Path, fleet: str) -> pd.DataFrame:
    """All steps of all runs of a fleet in a folder, oldest first, with the columns of `HISTORY`."""
    records = (Record.read(file.parent) for file in sorted(runs.glob(f"*-{fleet}/{FILE}")))
    tables = [
        steps(record).assign(
            fleet_run=record.folder.name, started=pd.Timestamp(record.facts["started"])
        )
        for record in records
        if record.facts["fleet"] == fleet
    ]
    return (
        pd.concat(tables, ignore_index=True)[HISTORY] if tables else pd.DataFrame(columns=HISTORY)
    )


def write(record: Record) -> Path:
    """Write ``report.html`` into a fleet's folder; its links lead to the reports of the hosts."""
    place = record.folder / audit.REPORT
    durable.replace(place, render(record).encode())
    return place


def render(record: Record) -> str:
    """The page of a fleet's run as it is now; raises BadInput where no host's run is here."""
    found = states(record)
    if not found:
        raise BadInput(
            "cannot report this fleet: because none of its hosts has a run yet",
            where=str(record.folder),
            hint="xenlab fleet run --resume",
        )
    table = steps(record)
    hosts = [_host(record, host, found.get(host, [])) for host in record.hosts]
    facts = {key: record.facts[key] for key in ("fleet", "started", "mode", "file")}
    template = environment().get_template("fleet.html.j2")
    return template.render(
        name=record.folder.name,
        facts=facts,
        hosts=hosts,
        chapters=record.facts["chapters"],
        differing=dict(_differing([host for host in hosts if host.parameters])),
        uneven=list(_uneven(table)),
        slowest=table.nlargest(SLOWEST, "seconds").to_dict("records"),
        colours=status_colours(),
        duration=duration,
    )


def _host(record: Record, host: str, chapters: list[ChapterState]) -> HostPage:
    state = record.hosts[host]
    folder = record.folder.parent / state.run
    parameters: dict[str, str] = {}
    if chapters:
        parameters = dict(flat("", folders.read(folder)["parameters"]))
    report = folder / audit.REPORT
    link = f"../{state.run}/{audit.REPORT}" if chapters and report.exists() else ""
    return HostPage(host, state, {c.name: c for c in chapters}, parameters, link)


def _differing(hosts: list[HostPage]) -> Iterator[tuple[str, list[str]]]:
    """The parameters that not all hosts have alike, with the value of each host."""
    for key in dict.fromkeys(key for host in hosts for key in host.parameters):
        values = [host.parameters.get(key, "") for host in hosts]
        if len(set(values)) > 1 and key not in OF_EACH:
            yield key, values


def _uneven(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The steps that did not end alike on all hosts that had them: each status, on which hosts."""
    for (_, title), same in table.groupby(["chapter", "title"], sort=False):
        ended = same.groupby("status", sort=False)["host"].agg(list)
        if len(ended) > 1:
            yield {"title": title, "ended": {str(k): list(v) for k, v in ended.items()}}
