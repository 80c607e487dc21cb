"""Telling that an engine ran out of GPU memory, without torch: by what its errors are called and say."""

from __future__ import annotations

_PARTS = (
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cufft_alloc_failed",
)
"""What a bare RuntimeError says where a library of CUDA's, not torch's own allocator, found no memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is ``torch.OutOfMemoryError`` or its like: a smaller batch or fewer at once may do."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _PARTS)
