"""A run as spans, sent to a real HTTP server that reads them as a collector does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.ssh.conftest import free_port
from tests.ssh.small import Site


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The requests that came."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            data = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    yield got
    server.shutdown()
    server.server_close()


def test_a_run_its_chapters_their_steps_and_each_command(site: Site, collector: list[Any]) -> None:
    site.chapter("01_first", site.made("01.1"), site.made("01.2", "Impossible"))
    assert site.xenlab("run", "-f", "site.yaml").returncode == 1
    (request,) = collector
    spans = [s for r in request.resource_spans for each in r.scope_spans for s in each.spans]
    by_id = {span.span_id: span for span in spans}

    def path(span: Any) -> list[str]:
        above = by_id.get(span.parent_span_id)
        return [*(path(above) if above else []), span.name]

    paths = [path(span) for span in spans]
    assert ["run test"] in paths and ["run test", "01_first", "01.1 Make 01.1"] in paths
    commands = [p for p in paths if len(p) == 4 and p[2] == "01.1 Make 01.1"]
    assert len(commands) >= 3, paths
    assert len({span.trace_id for span in spans}) == 1
    bad = {span.name for span in spans if span.status.code == 2}
    assert bad == {"run test", "01_first", "01.2 Make 01.2"}
    for span in spans:
        above = by_id.get(span.parent_span_id)
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        # the journal's times are rounded to milliseconds
        slack = 20_000_000
        assert above is None or above.start_time_unix_nano - slack <= span.start_time_unix_nano
        assert above is None or span.end_time_unix_nano <= above.end_time_unix_nano + slack


def test_a_collector_that_is_not_there_changes_nothing_of_the_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    site.chapter("01_first", site.made("01.1"))
    done = site.xenlab("run", "-f", "site.yaml")
    assert done.returncode == 0, done.stderr
    assert "cannot send spans: because what $OTEL_EXPORTER_OTLP_ENDPOINT names" in done.stderr
