"""Metadata's settings."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings, Settings


class MigrationSettings(Settings):
    """What the migration job needs."""

    database_url: str = Field(description="postgresql://user:password@host:port/name")


class MetadataSettings(ServiceSettings, MigrationSettings):
    """What the metadata service needs."""

    migrate: bool = Field(False, description="bring the schema up to date at start (embedded stacks)")
    bootstrap_team: str = Field("", description="a team to make where there is none")
    bootstrap_token: str = Field("", description="the API token of that team's first key, an operator's")
    lease_s: float = Field(15.0, gt=0, description="how long a lease holds without a heartbeat")
    sweep_s: float = Field(1.0, gt=0, description="between looks for expired leases and ended batches")
    claim_poll_s: float = Field(1.0, gt=0, description="between looks for work where no wake-up came")
    upload_ttl_s: float = Field(86_400.0, gt=0, description="after which an unfinished upload is forgotten")
    output_ttl_s: float = Field(7 * 86_400.0, gt=0, description="after which an output is deleted")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept per training")
    max_attempts: int = Field(4, ge=1, description="tries at a job before it fails")
    pool_size: int = Field(
        8, ge=2, description="database connections of the ledger; the catalogue has as many"
    )
