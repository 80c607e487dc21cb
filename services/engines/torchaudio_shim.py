"""Makes ``import torchaudio`` work on a torch that its compiled extension was not built for.

The registry's torchaudio 2.11 carries a shared library that wants CUDA. What Voxfleet and its
dependencies (f5-tts, vocos, torchfcpe) use of torchaudio is pure PyTorch: MelSpectrogram, Resample
and the Hz-to-mel formulas. So where the library does not load, the package is imported as its own
source supports it: as if it had been built without an extension.
"""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any, NoReturn

_EXTENSION = "torchaudio._extension"
_LOCK = threading.Lock()


def install() -> bool:
    """Import torchaudio, without its compiled extension where that cannot be loaded.

    Call it before anything imports torchaudio. Repeating it costs a dictionary look-up, and where
    torchaudio imports as it is, nothing is changed.

    Returns:
        True where the extension is left out, False where torchaudio is whole.

    Raises:
        ImportError: torchaudio is not installed, or fails for a reason that is not its extension.
    """
    with _LOCK:
        present = sys.modules.get("torchaudio")
        if present is not None:
            return isinstance(sys.modules.get(_EXTENSION), _AbsentExtension)
        try:
            importlib.import_module("torchaudio")
        except ModuleNotFoundError:
            raise
        except (ImportError, OSError, RuntimeError) as error:
            # OSError: a CUDA library is missing. RuntimeError: built for another CUDA than torch's.
            _forget_torchaudio()
            _import_without_extension(error)
            return True
        return False


class _AbsentExtension(ModuleType):
    """Stands for ``torchaudio._extension`` as it is in a build without compiled parts."""

    _IS_TORCHAUDIO_EXT_AVAILABLE = False
    _IS_ALIGN_AVAILABLE = False

    @staticmethod
    def fail_if_no_align(function: Any) -> Any:
        """Replace a function that needs the compiled aligner by one that says so."""

        def absent(*_args: object, **_kwargs: object) -> NoReturn:
            raise RuntimeError(
                f"torchaudio's {getattr(function, '__name__', 'function')} needs its compiled extension, "
                "which does not load with this torch"
            )

        return absent


def _import_without_extension(error: Exception) -> None:
    extension = _AbsentExtension(_EXTENSION)
    sys.modules[_EXTENSION] = extension
    try:
        package = importlib.import_module("torchaudio")
    except Exception as second:
        _forget_torchaudio()
        raise ImportError(
            f"torchaudio does not import, with its extension ({error}) or without it"
        ) from second
    # The import system binds a submodule to its package only when it loads the submodule itself.
    vars(package)["_extension"] = extension


def _forget_torchaudio() -> None:
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]
