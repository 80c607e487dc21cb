"""Metadata's settings."""

from __future__ import annotations

from typing import Literal

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
    guaranteed_run_s: float = Field(
        300.0, ge=0, description="what a training runs, with its GPUs, before it is asked to yield them"
    )
    retention_policy: Literal["archive", "delete", "keep"] = Field(
        "archive", description="what becomes of finished jobs; archived ones go to the object store first"
    )
    retain_jobs_s: float = Field(
        30 * 86_400.0, gt=0, description="how long a finished job stays, with its attempts and events"
    )
    orphan_grace_s: float = Field(
        86_400.0, ge=3600, description="age of an object that no row names, from which on it is deleted"
    )
    second_look_s: float = Field(
        900.0, ge=60, description="between condemning what nobody uses and deleting it"
    )
    retention_s: float = Field(60.0, gt=0, description="between runs of retention, over all processes")
    orphans_s: float = Field(
        6 * 3600.0, gt=0, description="between listings of the object store that look for orphans"
    )
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept per training")
    max_attempts: int = Field(4, ge=1, description="tries at a job before it fails")
    webhook_allow_private: bool = Field(
        False, description="let webhooks go to private and loopback addresses; link-local ones never"
    )
    webhook_timeout_s: float = Field(10.0, gt=0, le=60, description="for one attempt at a delivery")
    webhook_slots: int = Field(64, ge=1, le=1000, description="deliveries in flight in this process")
    pool_size: int = Field(
        8, ge=2, description="database connections of the ledger; the catalogue has as many"
    )
