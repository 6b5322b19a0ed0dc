"""The only place that chooses how an operation is computed; everybody else imports operations from here.

Today each operation has its torch reference alone, so there is nothing to choose and the names pass straight through.
"""

from kvasir_kernels.paged_attention.reference import paged_attention
from kvasir_kernels.rms_norm.reference import add_rms_norm, rms_norm
from kvasir_kernels.rotary.reference import apply_rotary
from kvasir_kernels.silu_mul.reference import silu_mul
from kvasir_kernels.write_kv.reference import write_kv

__all__ = ["add_rms_norm", "apply_rotary", "paged_attention", "rms_norm", "silu_mul", "write_kv"]
