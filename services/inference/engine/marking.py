"""Whether outputs carry the inaudible mark, and with which key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Only who marks pays for numpy: the service's own process merely passes this on.
    from services.engines.watermark import Marker, Samples


@dataclass(frozen=True, slots=True)
class Marking:
    """The setting, as an engine's replica holds it.

    Args:
        enabled: whether what is made is marked.
        key: what the mark is made of; never shown.
    """

    enabled: bool = False
    key: str = field(default="", repr=False)

    def whole(self, samples: Samples, rate_hz: int) -> Samples:
        """A finished output, marked where it is to be: as many samples."""
        if not self.enabled:
            return samples
        from services.engines.watermark import mark

        return mark(samples, rate_hz, self.key)

    def stream(self, rate_hz: int) -> Marker | None:
        """What marks a stream at an engine's own rate, block by block; None where it is not to be."""
        if not self.enabled:
            return None
        from services.engines.watermark import Marker

        return Marker(rate_hz, self.key)


UNMARKED = Marking()
