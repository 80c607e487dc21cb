"""Which licences of weights a team may use."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import Kind, Reason, VoxfleetError

IMPORTED_LICENCE = "LicenseRef-imported"
"""Of an imported voice of which nobody said more (SPDX: a licence that is on no list)."""


def is_allowed(allowed: Sequence[str], licence: str) -> bool:
    """Whether a team that may use those SPDX ids (any, where there are none) may use these weights."""
    return not allowed or licence in allowed


def check_licence(allowed: Sequence[str], licence: str, weights: str) -> None:
    """Refuses weights that a team may not use.

    Args:
        allowed: SPDX ids; any where there are none.
        licence: of the weights. One that nobody stated is on no list.
        weights: their name.

    Errors: LICENCE_NOT_ALLOWED with ``licence``, ``allowed`` and ``weights``.
    """
    if is_allowed(allowed, licence):
        return
    listed = ", ".join(allowed)
    raise VoxfleetError(
        Reason.LICENCE_NOT_ALLOWED,
        f"the weights {weights} are under {licence or 'no stated licence'}, and this team may use {listed}: "
        "use other weights, or ask an operator",
        kind=Kind.FORBIDDEN,
        metadata={"licence": licence, "allowed": listed, "weights": weights},
    )
