"""Figures of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.config import Address


class Metrics:
    """All figures, in a registry of their own: two servers in one process keep apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"limbeck_{name}", text, labels, registry=self.registry)

        self.calls = counter("calls", "Calls that ended, by status.", "method", "code")
        self.errors = counter("errors", "Errors told to clients, of calls and items.", "reason")
        self.items = counter("items", "Items of Score and Generate, by outcome.", "teacher", "method", "outcome")
        self.tokens = counter("tokens", "Tokens of items answered in full; prompts and sequences.", "teacher", "method")
        self.sent = counter("sent_bytes", "Bytes of messages sent, before gRPC's framing.", "method")
        self.streams = Gauge("limbeck_streams", "Calls open now.", ["method"], registry=self.registry)
        self._http: Any = None

    def watch(self, hosts: Callable[[], Mapping[str, Any]]) -> None:
        """Also tell of the teachers' workers, as they are when somebody asks."""
        self.registry.register(_Workers(hosts))

    def serve(self, address: Address) -> Address:
        """Answer GET /metrics until `close`; the address with the port taken. Raises SERVER_INVALID."""
        try:
            server, thread = start_http_server(address.port, address.host, self.registry)
        except OSError as error:
            problem = Problem(f"cannot listen on {address}: {error.strerror}", field="--metrics")
            raise LimbeckError(Reason.SERVER_INVALID, problems=[problem]) from error
        self._http = server, thread
        return Address(address.host, server.server_address[1])

    def close(self) -> None:
        """Stop answering; a second call does nothing."""
        if self._http is not None:
            (server, thread), self._http = self._http, None
            server.shutdown()
            server.server_close()
            thread.join()


class _Workers:
    def __init__(self, hosts: Callable[[], Mapping[str, Any]]) -> None:
        self._hosts = hosts

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("limbeck_teacher_ready", "Whether the worker answers.", labels=["teacher"])
        restarts = CounterMetricFamily("limbeck_worker_restarts", "Workers lost.", labels=["teacher"])
        queue = GaugeMetricFamily("limbeck_queue_items", "Items that wait for a batch.", labels=["teacher", "method"])
        batches = CounterMetricFamily("limbeck_batches", "Batches given to the worker.", labels=["teacher", "method"])
        tokens = CounterMetricFamily("limbeck_batch_tokens", "Tokens in them.", labels=["teacher", "method"])
        for name, host in self._hosts().items():
            ready.add_metric([name], float(host.state == "ready"))
            restarts.add_metric([name], host.restarts)
            for method, lane in host.lanes.items():
                queue.add_metric([name, method], lane.waiting)
                batches.add_metric([name, method], lane.batches)
                tokens.add_metric([name, method], lane.tokens)
        return [ready, restarts, queue, batches, tokens]
