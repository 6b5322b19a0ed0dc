"""Where a rank stands among the ranks of its gang.

    tp=2 pp=2    stage 0: ranks 0 1    stage 1: ranks 2 3

The ranks of a stage share each layer; a stage has some of the layers. Rank 0 leads.
"""

from dataclasses import dataclass
from typing import Protocol

from kvasir_protocol.errors import ConfigError
from kvasir_workers.model.spec import DecoderSpec

LEADER = 0


class ParallelSizes(Protocol):
    """A pool's or a replica's configuration, or an engine directory's manifest."""

    @property
    def tensor_parallel_size(self) -> int: ...

    @property
    def pipeline_parallel_size(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GangShape:
    """How many ranks share a layer, and how many stages share the layers."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1

    def __post_init__(self) -> None:
        if min(self.tensor_parallel_size, self.pipeline_parallel_size) < 1:
            raise ConfigError(f"tensor and pipeline parallel sizes must be at least 1, got {self}")

    @classmethod
    def of(cls, sizes: ParallelSizes) -> "GangShape":
        return cls(tensor_parallel_size=sizes.tensor_parallel_size, pipeline_parallel_size=sizes.pipeline_parallel_size)

    @property
    def num_ranks(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __str__(self) -> str:
        return f"tp={self.tensor_parallel_size} pp={self.pipeline_parallel_size}"


def check_shape(spec: DecoderSpec, shape: GangShape) -> None:
    """Raise ConfigError if the model's heads or layers can't be shared like this."""
    if spec.num_heads % shape.tensor_parallel_size:
        sizes = [str(size) for size in range(1, spec.num_heads + 1) if spec.num_heads % size == 0]
        raise ConfigError(
            f"tensor_parallel_size {shape.tensor_parallel_size} does not divide the model's {spec.num_heads} heads; "
            f"set one of {', '.join(sizes)}"
        )
    if shape.pipeline_parallel_size > spec.num_layers:
        raise ConfigError(
            f"pipeline_parallel_size {shape.pipeline_parallel_size} is above the model's {spec.num_layers} layers; "
            "lower it"
        )


@dataclass(frozen=True, slots=True)
class RankPlace:
    """One rank of a gang."""

    shape: GangShape
    rank: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.shape.num_ranks, f"rank {self.rank} of {self.shape.num_ranks}"

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.shape.tensor_parallel_size

    @property
    def stage(self) -> int:
        return self.rank // self.shape.tensor_parallel_size

    @property
    def is_leader(self) -> bool:
        return self.rank == LEADER

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.shape.pipeline_parallel_size - 1

    @property
    def stage_ranks(self) -> range:
        """The ranks that share its layers, itself among them."""
        first = self.stage * self.shape.tensor_parallel_size
        return range(first, first + self.shape.tensor_parallel_size)

    def across(self, num_stages: int) -> int:
        """The rank in its own place so many stages on, round to the first."""
        return (self.rank + num_stages * self.shape.tensor_parallel_size) % self.shape.num_ranks

    def __str__(self) -> str:
        return f"rank {self.rank} (pipeline stage {self.stage}, tensor rank {self.tensor_rank})"
