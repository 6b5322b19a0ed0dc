"""What the flags of `kvasir bench serve` say of arrivals and figures, checked."""

import argparse
from typing import Any

from kvasir.bench.arrivals import Ramp, Traffic
from kvasir.bench.metrics import METRICS, SLO_METRICS, Metric, Slo, Wanted
from kvasir_protocol.errors import ConfigError


def read_traffic(options: argparse.Namespace) -> Traffic:
    """Raises ConfigError for rates that can't be, or two ways to say when."""
    rate, ramp = options.request_rate, None
    if not rate > 0 or not options.burstiness > 0:
        raise ConfigError("--request-rate and --burstiness must be above 0")
    is_limited = rate != float("inf") or options.ramp_up_strategy is not None
    if is_limited and options.dataset_name == "mooncake":
        raise ConfigError("a trace says itself when each request comes; use --trace-speed instead of a rate")
    if options.ramp_up_strategy is not None:
        start, end = options.ramp_up_start_rps, options.ramp_up_end_rps
        if rate != float("inf"):
            raise ConfigError("--ramp-up-strategy sets the rate; leave out --request-rate")
        if start is None or end is None or not 0 < start <= end:
            raise ConfigError("--ramp-up-strategy needs 0 < --ramp-up-start-rps <= --ramp-up-end-rps")
        ramp = Ramp(strategy=options.ramp_up_strategy, start_rps=start, end_rps=end)
    return Traffic(request_rate=rate, burstiness=options.burstiness, ramp=ramp)


def read_wanted(options: argparse.Namespace) -> Wanted:
    """Raises ConfigError for metrics and percentiles that are none."""
    metrics: list[Metric] = []
    for name in options.percentile_metrics.split(","):
        known = next((metric for metric in METRICS if metric == name.strip()), None)
        if known is None:
            raise ConfigError(f"--percentile-metrics: {name!r} is none of {', '.join(METRICS)}")
        metrics.append(known)
    try:
        percentiles = tuple(float(text) for text in options.metric_percentiles.split(","))
    except ValueError as error:
        raise ConfigError(f"--metric-percentiles: {error}") from error
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ConfigError("--metric-percentiles lie between 0 and 100")
    return Wanted(metrics=tuple(metrics), percentiles=percentiles, slo=_read_slo(options.goodput))


def _read_slo(pairs: list[str] | None) -> Slo | None:
    if pairs is None:
        return None
    limits: dict[Any, float] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = -1
        if name not in SLO_METRICS or not limits[name] >= 0:
            raise ConfigError(
                f"--goodput: {pair!r} is not one of {', '.join(f'{metric}:MS' for metric in SLO_METRICS)}"
            )
    return limits


def read_pairs(pairs: list[str], flag: str) -> dict[str, str]:
    """Raises ConfigError for one without a `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"{flag}: {pair!r} is not NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}
