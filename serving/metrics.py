"""What /metrics shows, by prometheus-client, in a registry of the application's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .hosts import Host
from .orders import Drawn

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)


@final
class Metrics:
    """Counted where a request ends; queues and reloads are read when somebody looks.

    What is counted is found by its labels once: every look-up takes a lock and makes texts of them.
    """

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self.registry = CollectorRegistry()
        self.running = 0  # requests that are being answered
        own = {"registry": self.registry, "namespace": "pfdiff"}
        requests = Counter("requests", "Requests by route and HTTP status; 499: left.", ["route", "status"], **own)
        samples = Counter("samples", "Samples drawn.", ["engine", "sampler", "nfe"], **own)
        fill = Histogram("batch_fill", "Samples of a batch over its bucket.", ["engine"], buckets=SHARES, **own)
        latency = Histogram("request_seconds", "From request to answer.", ["route"], buckets=SECONDS, **own)
        wait = Histogram("wait_seconds", "In the queue.", ["engine"], buckets=SECONDS, **own)
        sampling = Histogram("sample_seconds", "Inside the engine.", ["engine"], buckets=SECONDS, **own)
        self._requests, self._samples = cache(requests.labels), cache(samples.labels)
        self._fill, self._latency = cache(fill.labels), cache(latency.labels)
        self._wait, self._sampling = cache(wait.labels), cache(sampling.labels)
        self.registry.register(_Looked(self, hosts))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request, and how long it took if it was for samples."""
        self._requests(route, status).inc()
        if method == "POST" and status == 200:
            self._latency(route).observe(seconds)

    def drawn(self, engine: str, sampler: str, nfe: int, drawn: Drawn) -> None:
        """Count an order that was drawn."""
        self._samples(engine, sampler, nfe).inc(len(drawn.rows))
        self._wait(engine).observe(drawn.timing.wait_ms / 1e3)
        self._sampling(engine).observe(drawn.timing.sample_ms / 1e3)
        for count, bucket in drawn.timing.batches:
            self._fill(engine).observe(min(1.0, count / bucket))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


@final
class _Looked(Collector):
    """What is read when somebody looks."""

    def __init__(self, metrics: Metrics, hosts: Mapping[str, Host]) -> None:
        self._metrics = metrics
        self._hosts = hosts

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily(
            "pfdiff_requests_running", "Requests that are being answered.", self._metrics.running
        )
        queue = GaugeMetricFamily("pfdiff_queue_samples", "Samples that wait.", labels=["engine"])
        up = GaugeMetricFamily("pfdiff_engine_up", "1 while the engine answers.", labels=["engine"])
        reloads = CounterMetricFamily("pfdiff_engine_reloads", "Broken engines loaded again.", labels=["engine"])
        for name, host in self._hosts.items():
            queue.add_metric([name], host.waiting)
            up.add_metric([name], 0 if host.trouble else 1)
            reloads.add_metric([name], host.reloads)
        return [running, queue, up, reloads]
