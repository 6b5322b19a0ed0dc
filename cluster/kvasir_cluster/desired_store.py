"""Where a controller keeps what it must not forget: in the table that Ray's head keeps for everybody."""

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from kvasir_cluster.desired import Desired

NAMESPACE = b"kvasir"


class DesiredStore:
    """One cluster's entry. It outlives the controller's process, and ends with Ray's head."""

    def __init__(self, cluster: str) -> None:
        self._key = cluster.encode()

    def load(self) -> Desired | None:
        """What was saved last; None before the first time."""
        packed = _internal_kv_get(self._key, namespace=NAMESPACE)
        return Desired.unpack(packed) if packed is not None else None

    def save(self, desired: Desired) -> None:
        _internal_kv_put(self._key, desired.pack(), overwrite=True, namespace=NAMESPACE)

    def remove(self) -> None:
        _internal_kv_del(self._key, namespace=NAMESPACE)
