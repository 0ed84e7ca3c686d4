"""A run as OpenTelemetry's spans, run → chapter → step → command, where an endpoint is named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from xenlab.errors import XenlabError
from xenlab.journal import Journal
from xenlab.runs import folder as runs
from xenlab.runs.folder import BAD

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""The variable that names where spans go; without it nothing of OpenTelemetry is loaded."""

PACKAGE = "opentelemetry-exporter-otlp-proto-http"
"""What sends them; it brings the rest along."""

COMMAND_CHARACTERS = 200
"""How much of a command stands in the name of its span; all of it is an attribute."""

Record = Mapping[str, Any]


@dataclass
class Span:
    """What took from ``start`` to ``end`` (seconds since 1970), and the spans inside."""

    name: str
    start: float
    end: float
    attributes: dict[str, str | int | float]
    problem: str = ""
    inner: list[Span] = field(default_factory=list)


def wanted() -> bool:
    """Whether somebody wants spans."""
    return bool(os.environ.get(ENDPOINT))


def send(folder: Path) -> str:
    """Send the spans of a run since it last began; return "" or why that cannot be."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SpanExportResult, SpanProcessor
    except ImportError:
        return f"OpenTelemetry is not installed: .venv/bin/pip install {PACKAGE}"
    try:
        run = of_run(folder)
    except XenlabError as error:
        return error.message
    ended: list[Any] = []

    class Kept(SpanProcessor):  # type: ignore[misc, unused-ignore]
        def on_end(self, span: Any) -> None:
            ended.append(span)

    provider = TracerProvider(resource=Resource.create({"service.name": "xenlab"}))
    provider.add_span_processor(Kept())
    _start(provider.get_tracer("xenlab"), run, None)
    exporter = OTLPSpanExporter()
    try:
        sent = exporter.export(ended)
    finally:
        exporter.shutdown()
        provider.shutdown()
    return "" if sent is SpanExportResult.SUCCESS else f"what ${ENDPOINT} names did not take them"


def of_run(folder: Path) -> Span:
    """The spans of a run since it last began, as its journal tells them."""
    records = Journal(folder).records()
    begun = [n for n, record in enumerate(records) if record.get("phase") == "begin"]
    own = records[begun[-1] :] if begun else records
    facts = runs.read(folder)
    status = next((r["status"] for r in reversed(own) if r.get("phase") == "end"), None)
    attributes = {"xenlab.run": folder.name, "xenlab.mode": facts["mode"]}
    problem = "" if status == 0 else f"exit status {status}"
    start, end = _time(own[0]), _time(own[-1])
    run = Span(f"run {facts['site']}", start, end, {**attributes}, problem)
    for name in dict.fromkeys(str(r["chapter"]) for r in own if r.get("chapter")):
        run.inner.append(_chapter(name, [r for r in own if r.get("chapter") == name]))
    return run


def _chapter(name: str, records: Sequence[Record]) -> Span:
    steps = [_step(record) for record in records if record.get("phase") == "final"]
    problem = next((step.problem for step in steps if step.problem), "")
    span = Span(name, _time(records[0]), _time(records[-1]), {"xenlab.chapter": name}, problem)
    span.inner += steps
    return span


def _step(record: Record) -> Span:
    end, status = _time(record), str(record["status"])
    start = end - float(record["seconds"])
    problem = str(record.get("message", "")) or status if status in BAD else ""
    attributes = {"xenlab.step": record["step"], "xenlab.status": status, "host": record["host"]}
    span = Span(str(record["title"]), start, end, attributes, problem)
    span.inner += _commands(record, start)
    return span


def _commands(record: Record, start: float) -> Iterator[Span]:
    for command in record.get("commands") or ():
        began = start + float(command.get("at", 0))
        status, text = command["status"], str(command["command"]).strip()
        attributes: dict[str, str | int | float] = {
            "xenlab.command": text,
            "xenlab.phase": command["phase"],
            "host": str(command.get("host", record["host"])),
            "xenlab.times": int(command.get("times", 1)),
            **({} if status is None else {"xenlab.exit_status": status}),
        }
        name = text.partition("\n")[0][:COMMAND_CHARACTERS] or "(nothing)"
        yield Span(name, began, began + float(command["seconds"]), attributes)


def _start(tracer: Any, span: Span, above: Any) -> None:
    from opentelemetry.trace import Status, StatusCode, set_span_in_context

    context = None if above is None else set_span_in_context(above)
    own = tracer.start_span(
        span.name, context=context, start_time=_nanoseconds(span.start), attributes=span.attributes
    )
    if span.problem:
        own.set_status(Status(StatusCode.ERROR, span.problem))
    for each in span.inner:
        _start(tracer, each, own)
    own.end(end_time=_nanoseconds(span.end))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _time(record: Record) -> float:
    return datetime.fromisoformat(str(record["time"])).timestamp()
