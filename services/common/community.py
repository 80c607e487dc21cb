"""Which voices the community's programs can use."""

from __future__ import annotations

from typing import Final

from services.common.errors import Reason, invalid

VERSION_OF_ENCODER: Final = {"contentvec": "v2", "contentvec-v1": "v1"}
"""The content encoders that those programs have, and what they call a model trained on each."""


def check_exportable(voice: str, content_encoder: str, *, field: str = "") -> None:
    """Refuses to make a ``.pth`` of a voice that others would feed features which it has never seen.

    Errors: UNSUPPORTED_ENGINE with ``content_encoder``.
    """
    if content_encoder not in VERSION_OF_ENCODER:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"a .pth is read with ContentVec features, and {voice} was trained on {content_encoder}: "
            "export it in Voxfleet's own format",
            field=field,
            content_encoder=content_encoder,
        )
