"""Every deadline of the router in one place: nothing waits for ever."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """All in seconds.

    ping_interval_s: between questions to a replica for its Stats; six unanswered ones make it "down".
    reservation_s: pages are set aside in microseconds; a replica that has not when the prompt is computed, and so much
    time has gone by, had better prefill itself.
    handover_s: from reservation to commit, as promised to the decode replica; and until it is known where pages go.
    silence_s: after it, a replica that makes no engine steps is given up by the stream that waits for it;
    max_silence_s: even one that makes steps, for then a message must have been lost.
    first_link_s: how long a new stream waits in a router that has just begun and has not reached any replica yet.
    replica_wait_s: how long an accepted stream waits for some replica to come up, about the time to start one.
    """

    ping_interval_s: float = 0.5
    reservation_s: float = 2.0
    handover_s: float = 10.0
    silence_s: float = 30.0
    max_silence_s: float = 300.0
    first_link_s: float = 3.0
    replica_wait_s: float = 30.0
