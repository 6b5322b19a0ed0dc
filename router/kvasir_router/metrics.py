"""The router's own Prometheus series, and those of every replica as it last told them."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvasir_protocol import metrics as names
from kvasir_protocol.events import ReplicaStats
from kvasir_protocol.request import FinishReason
from kvasir_router.fleet import Fleet


class MetricFamilies:
    """The router's series, once in a registry, for all the models that it serves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, text, ["model_name"], buckets=tuple(buckets), registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=registry)

        latencies, sizes = names.LATENCY_BUCKETS_S, names.TOKEN_BUCKETS
        self.time_to_first_token = histogram(names.TIME_TO_FIRST_TOKEN, "From request to first token.", latencies)
        self.inter_token_latency = histogram(names.INTER_TOKEN_LATENCY, "Between a stream's tokens.", latencies)
        self.e2e_latency = histogram(names.E2E_REQUEST_LATENCY, "From request to last token.", latencies)
        self.prompt_tokens = histogram(names.REQUEST_PROMPT_TOKENS, "Prompt lengths.", sizes)
        self.generation_tokens = histogram(names.REQUEST_GENERATION_TOKENS, "Answer lengths.", sizes)
        self.streams_replayed = counter(names.STREAMS_REPLAYED, "Streams that went on at another replica.")
        self.handover_fallbacks = counter(names.HANDOVER_FALLBACKS, "Streams whose decode replica prefilled itself.")
        self.finished = Counter(
            names.REQUEST_SUCCESS, "Finished streams.", ["model_name", "finished_reason"], registry=registry
        )
        self._errors = Counter(names.HTTP_ERRORS, "Responses of status 400 and above.", ["code"], registry=registry)

    def count_error(self, status: int) -> None:
        self._errors.labels(str(status)).inc()


class FrontDoorMetrics:
    """What is seen of one model from here: latencies, finished streams, and what went wrong on the way."""

    def __init__(self, families: MetricFamilies, model_name: str) -> None:
        self.time_to_first_token = families.time_to_first_token.labels(model_name)
        self.inter_token_latency = families.inter_token_latency.labels(model_name)
        self.e2e_latency = families.e2e_latency.labels(model_name)
        self.prompt_tokens = families.prompt_tokens.labels(model_name)
        self.generation_tokens = families.generation_tokens.labels(model_name)
        self.streams_replayed = families.streams_replayed.labels(model_name)
        self.handover_fallbacks = families.handover_fallbacks.labels(model_name)
        self._finished = families.finished
        self._model_name = model_name

    def count_finished(self, reason: FinishReason) -> None:
        self._finished.labels(self._model_name, reason).inc()


class StreamTimes:
    """Observes one stream's latencies. Times are seconds of one monotonic clock."""

    def __init__(self, metrics: FrontDoorMetrics, started_at: float, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._started_at = started_at
        self._last_at = started_at
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0

    def saw_tokens(self, num_tokens: int, now: float) -> None:
        """Tokens that came together share the time since the former ones."""
        if not num_tokens:
            return
        if not self._num_tokens:
            self._metrics.time_to_first_token.observe(now - self._started_at)
        else:
            self._metrics.inter_token_latency.observe((now - self._last_at) / num_tokens)
        self._num_tokens += num_tokens
        self._last_at = now

    def finished(self, reason: FinishReason, now: float) -> None:
        self._metrics.e2e_latency.observe(now - self._started_at)
        self._metrics.prompt_tokens.observe(self._num_prompt_tokens)
        self._metrics.generation_tokens.observe(self._num_tokens)
        self._metrics.count_finished(reason)


class ReplicaCollector(Collector):
    """Renders the latest ReplicaStats at every scrape; a replica that is down has REPLICA_UP 0 and no other series."""

    def __init__(self, fleets: Mapping[str, Fleet]) -> None:
        """fleets: by the name of the model that they serve."""
        self._fleets = fleets

    def collect(self) -> Iterable[Metric]:
        labels = ["model_name", "engine", "role"]
        up = GaugeMetricFamily(names.REPLICA_UP, "Whether the replica is connected and answers.", labels=labels)
        gauges = {name: GaugeMetricFamily(name, name, labels=labels) for name in _GAUGES}
        counters = {name: CounterMetricFamily(name, name, labels=labels) for name in _COUNTERS}
        moved = CounterMetricFamily(names.HANDOVER_BYTES, "Page bytes.", labels=[*labels, "direction", "transport"])
        links = [(name, link) for name, fleet in self._fleets.items() for link in fleet.links]
        for model_name, link in links:
            values = [model_name, link.replica_id, link.address.role]
            up.add_metric(values, float(link.is_up))
            if link.stats is None:
                continue
            for name, read in _GAUGES.items():
                gauges[name].add_metric(values, read(link.stats))
            for name, read in _COUNTERS.items():
                counters[name].add_metric(values, read(link.stats))
            handover = link.stats.handover
            moved.add_metric([*values, "pushed", "shared_memory"], handover.pushed_bytes_shared_memory)
            moved.add_metric([*values, "pushed", "process_group"], handover.pushed_bytes_process_group)
            moved.add_metric([*values, "pushed", "tcp"], handover.pushed_bytes_tcp)
        return [up, *gauges.values(), *counters.values(), moved]


def _page_usage(stats: ReplicaStats) -> float:
    return stats.num_used_pages / max(stats.num_pages, 1)


_GAUGES: dict[str, Callable[[ReplicaStats], float]] = {
    names.NUM_REQUESTS_RUNNING: lambda stats: stats.num_running,
    names.NUM_REQUESTS_WAITING: lambda stats: stats.num_waiting,
    names.KV_CACHE_USAGE: _page_usage,
    names.QUARANTINED_PAGES: lambda stats: stats.handover.quarantined_pages,
    names.REPLICA_RESIDENT_BYTES: lambda stats: stats.resident_bytes,
}

_COUNTERS: dict[str, Callable[[ReplicaStats], float]] = {
    names.PROMPT_TOKENS: lambda stats: stats.engine.prompt_tokens,
    names.PROMPT_TOKENS_CACHED: lambda stats: stats.engine.cached_prompt_tokens,
    names.GENERATION_TOKENS: lambda stats: stats.engine.generated_tokens,
    names.NUM_PREEMPTIONS: lambda stats: stats.engine.num_preemptions,
    names.PREFIX_CACHE_QUERIES: lambda stats: stats.engine.prompt_tokens,
    names.PREFIX_CACHE_HITS: lambda stats: stats.engine.cached_prompt_tokens,
    names.TOKENS_RECOMPUTED: lambda stats: stats.engine.recomputed_tokens,
    names.HOST_PAGES_SAVED: lambda stats: stats.engine.host_saved_pages,
    names.HOST_PAGES_RESTORED: lambda stats: stats.engine.host_restored_pages,
    names.HOST_PAGES_DROPPED: lambda stats: stats.engine.host_dropped_pages,
    names.DISK_PAGES_SAVED: lambda stats: stats.engine.disk_saved_pages,
    names.DISK_PAGES_RESTORED: lambda stats: stats.engine.disk_restored_pages,
    names.DISK_PAGES_DROPPED: lambda stats: stats.engine.disk_dropped_pages,
    names.DISK_PAGES_CORRUPT: lambda stats: stats.engine.disk_corrupt_pages,
    names.REQUESTS_REFUSED: lambda stats: stats.engine.refused_requests,
    names.REQUESTS_OVERDUE: lambda stats: stats.engine.overdue_requests,
    names.ENGINE_STEPS: lambda stats: stats.engine.num_steps,
    names.PREFILL_TOKENS_COMPUTED: lambda stats: stats.engine.computed_prompt_tokens,
    names.HANDOVER_PUSHED: lambda stats: stats.handover.pushed_requests,
    names.HANDOVER_RECEIVED: lambda stats: stats.handover.received_requests,
    names.HANDOVER_FAILED: lambda stats: stats.handover.failed_requests,
}
