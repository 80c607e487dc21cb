"""How to reach the object store."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class S3Settings(BaseSettings):
    """Any S3 endpoint: the names are ``VOXFLEET_S3_*`` in the environment.

    ``endpoint`` is ``host:port`` or a URL, whose scheme then decides ``secure``. ``public_endpoint``
    is what presigned URLs name, where clients reach the store by another address; with no scheme
    of its own it is as secure as ``endpoint``.
    """

    model_config = SettingsConfigDict(env_prefix="VOXFLEET_S3_", frozen=True, extra="ignore")

    endpoint: str
    access_key: str
    secret_key: SecretStr
    bucket: str = "voxfleet"
    secure: bool = True
    region: str = "us-east-1"
    public_endpoint: str = ""

    @model_validator(mode="before")
    @classmethod
    def _split_scheme(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        endpoint = str(values.get("endpoint", ""))
        for scheme, secure in (("https://", True), ("http://", False)):
            if endpoint.startswith(scheme):
                return {**values, "endpoint": endpoint.removeprefix(scheme).rstrip("/"), "secure": secure}
        return values

    @property
    def public(self) -> tuple[str, bool]:
        """``(host:port, secure)`` of the address that presigned URLs name."""
        for scheme, secure in (("https://", True), ("http://", False)):
            if self.public_endpoint.startswith(scheme):
                return self.public_endpoint.removeprefix(scheme).rstrip("/"), secure
        return self.public_endpoint or self.endpoint, self.secure

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> S3Settings:
        """The settings in a given environment, whatever this process's own one says."""
        prefix = "VOXFLEET_S3_"
        names = {
            name: environ[prefix + name.upper()]
            for name in cls.model_fields
            if prefix + name.upper() in environ
        }
        return cls.model_validate(names)

    def to_environ(self) -> dict[str, str]:
        """The same settings as environment variables, for a child process."""
        return {
            "VOXFLEET_S3_ENDPOINT": self.endpoint,
            "VOXFLEET_S3_ACCESS_KEY": self.access_key,
            "VOXFLEET_S3_SECRET_KEY": self.secret_key.get_secret_value(),
            "VOXFLEET_S3_BUCKET": self.bucket,
            "VOXFLEET_S3_SECURE": "true" if self.secure else "false",
            "VOXFLEET_S3_REGION": self.region,
            "VOXFLEET_S3_PUBLIC_ENDPOINT": self.public_endpoint,
        }
