"""The gateway's settings."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """What the gateway needs."""

    audio_address: str = Field(description="host:port of the audio service")
    inference_address: str = Field(description="host:port of the inference service")
    unary_timeout_s: float = Field(30.0, gt=0, description="deadline of a unary call that brings none")
    upload_timeout_s: float = Field(3600.0, gt=0, description="deadline of an upload that brings none")
