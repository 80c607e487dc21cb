"""What every service reads from its environment; each service adds its own.

Classes are frozen and are read once, in a service's ``__main__``. Every name begins with
``VOXFLEET_``; a test holds the Helm chart's names against these classes.
"""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The base of all settings classes."""

    model_config = SettingsConfigDict(env_prefix="VOXFLEET_", frozen=True, extra="ignore")


class ServiceSettings(Settings):
    """What every service needs."""

    listen: str = Field("127.0.0.1:0", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: str = Field("127.0.0.1:0", description="host:port of Prometheus' /metrics")
    service_token: str = Field(min_length=16, description="the secret that services show one another")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_json: bool = Field(False, description="one JSON object a line instead of text")
    otlp_endpoint: str = Field("", description="OTLP/gRPC collector; tracing is off where empty")
    drain_s: float = Field(10.0, gt=0, description="how long a stopping server lets calls end")
    metadata_address: str = Field("", description="host:port of the metadata service")
