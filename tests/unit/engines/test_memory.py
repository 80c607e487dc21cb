import pytest

from services.engines.memory import is_out_of_memory


class OutOfMemoryError(RuntimeError):
    """As torch's own is called, wherever it stands."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("whatever it says"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), True),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA out of memory"), False),
        (MemoryError("the host's"), False),
    ],
)
def test_a_lack_of_gpu_memory_is_told_by_name_or_words(error, expected):
    assert is_out_of_memory(error) is expected
