"""What /metrics shows, by prometheus-client, in a registry of the application's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .hosts import Host
from .orders import Drawn

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)


@final
class Metrics:
    """Counted where a request ends; queues and reloads are read when somebody looks."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "pfdiff"}
        self.requests = Counter("requests", "Requests by route and HTTP status; 499: left.", ["route", "status"], **own)
        self.samples = Counter("samples", "Samples drawn.", ["engine", "sampler", "nfe"], **own)
        self.running = Gauge("requests_running", "Requests that are being answered.", **own)
        self.fill = Histogram("batch_fill", "Samples of a batch over its bucket.", ["engine"], buckets=SHARES, **own)
        self.latency = Histogram("request_seconds", "From body to answer.", ["route"], buckets=SECONDS, **own)
        self.wait = Histogram("wait_seconds", "In the queue.", ["engine"], buckets=SECONDS, **own)
        self.sampling = Histogram("sample_seconds", "Inside the engine.", ["engine"], buckets=SECONDS, **own)
        self.registry.register(_OfHosts(hosts))
        self._found: dict[tuple[str, str, int], tuple[Counter, Histogram, Histogram]] = {}

    def drawn(self, engine: str, sampler: str, nfe: int, drawn: Drawn) -> None:
        """Count an order that was drawn."""
        samples, wait, sampling = self._labelled(engine, sampler, nfe)
        samples.inc(len(drawn.rows))
        wait.observe(drawn.timing.wait_ms / 1e3)
        sampling.observe(drawn.timing.sample_ms / 1e3)
        for count, bucket in drawn.timing.batches:
            self.fill.labels(engine).observe(min(1.0, count / bucket))

    def _labelled(self, engine: str, sampler: str, nfe: int) -> tuple[Counter, Histogram, Histogram]:
        """What is counted of an order, found once: every look-up by labels takes a lock and makes texts of them."""
        key = engine, sampler, nfe
        if key not in self._found:
            self._found[key] = self.samples.labels(*key), self.wait.labels(engine), self.sampling.labels(engine)
        return self._found[key]

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


@final
class _OfHosts(Collector):
    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = hosts

    def collect(self) -> Iterable[Metric]:
        queue = GaugeMetricFamily("pfdiff_queue_samples", "Samples that wait.", labels=["engine"])
        up = GaugeMetricFamily("pfdiff_engine_up", "1 while the engine answers.", labels=["engine"])
        reloads = CounterMetricFamily("pfdiff_engine_reloads", "Broken engines loaded again.", labels=["engine"])
        for name, host in self._hosts.items():
            queue.add_metric([name], host.waiting)
            up.add_metric([name], 0 if host.trouble else 1)
            reloads.add_metric([name], host.reloads)
        return [queue, up, reloads]
