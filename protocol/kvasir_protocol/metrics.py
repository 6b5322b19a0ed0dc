"""Names of the Prometheus series: vLLM's where the meaning is the same, so that existing dashboards work."""

from typing import Final

# Gauges and counters of a replica; labels model_name, engine (the replica's id) and role.
NUM_REQUESTS_RUNNING: Final = "vllm:num_requests_running"
NUM_REQUESTS_WAITING: Final = "vllm:num_requests_waiting"
KV_CACHE_USAGE: Final = "vllm:kv_cache_usage_perc"
PROMPT_TOKENS: Final = "vllm:prompt_tokens"
PROMPT_TOKENS_CACHED: Final = "vllm:prompt_tokens_cached"
GENERATION_TOKENS: Final = "vllm:generation_tokens"
NUM_PREEMPTIONS: Final = "vllm:num_preemptions"
PREFIX_CACHE_QUERIES: Final = "vllm:prefix_cache_queries"
PREFIX_CACHE_HITS: Final = "vllm:prefix_cache_hits"

# Seen from the front door; label model_name.
REQUEST_SUCCESS: Final = "vllm:request_success"
TIME_TO_FIRST_TOKEN: Final = "vllm:time_to_first_token_seconds"
INTER_TOKEN_LATENCY: Final = "vllm:inter_token_latency_seconds"
E2E_REQUEST_LATENCY: Final = "vllm:e2e_request_latency_seconds"
REQUEST_PROMPT_TOKENS: Final = "vllm:request_prompt_tokens"
REQUEST_GENERATION_TOKENS: Final = "vllm:request_generation_tokens"

# Without a counterpart in vLLM.
ENGINE_STEPS: Final = "kvasir:engine_steps"
PREFILL_TOKENS_COMPUTED: Final = "kvasir:prefill_tokens_computed"
TOKENS_RECOMPUTED: Final = "kvasir:tokens_recomputed"
HOST_PAGES_SAVED: Final = "kvasir:kv_host_pages_saved"
HOST_PAGES_RESTORED: Final = "kvasir:kv_host_pages_restored"
HOST_PAGES_DROPPED: Final = "kvasir:kv_host_pages_dropped"
DISK_PAGES_SAVED: Final = "kvasir:kv_disk_pages_saved"
DISK_PAGES_RESTORED: Final = "kvasir:kv_disk_pages_restored"
DISK_PAGES_DROPPED: Final = "kvasir:kv_disk_pages_dropped"
DISK_PAGES_CORRUPT: Final = "kvasir:kv_disk_pages_corrupt"
REQUESTS_REFUSED: Final = "kvasir:requests_refused"
REQUESTS_OVERDUE: Final = "kvasir:requests_overdue"
HANDOVER_BYTES: Final = "kvasir:handover_bytes"
HANDOVER_PUSHED: Final = "kvasir:handover_requests_pushed"
HANDOVER_RECEIVED: Final = "kvasir:handover_requests_received"
HANDOVER_FAILED: Final = "kvasir:handover_requests_failed"
QUARANTINED_PAGES: Final = "kvasir:quarantined_pages"
REPLICA_UP: Final = "kvasir:replica_up"
REPLICA_RESIDENT_BYTES: Final = "kvasir:replica_resident_memory_bytes"
STREAMS_REPLAYED: Final = "kvasir:streams_replayed"
HTTP_ERRORS: Final = "kvasir:http_errors"
HANDOVER_FALLBACKS: Final = "kvasir:handover_fallbacks"

LATENCY_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
    0.75, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
"""vLLM's edges and finer ones below 10 ms, where modern inter-token latencies lie."""

TOKEN_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
