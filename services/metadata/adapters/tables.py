"""The catalogue's tables for SQLAlchemy Core; the migrations are what makes them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

meta = sa.MetaData()


def _text(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=primary_key)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, JSONB)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True))


teams = sa.Table(
    "teams",
    meta,
    _text("id", primary_key=True),
    _text("display_name"),
    sa.Column("allowed_licences", ARRAY(sa.Text)),
    _time("created_at"),
)

api_keys = sa.Table(
    "api_keys",
    meta,
    _text("team", primary_key=True),
    _text("id", primary_key=True),
    _text("token_sha256"),
    _text("display_name"),
    sa.Column("operator", sa.Boolean),
    _time("created_at"),
    _time("revoked_at"),
)

requests = sa.Table(
    "requests",
    meta,
    _text("team", primary_key=True),
    _text("request_id", primary_key=True),
    _text("method"),
    _text("fingerprint"),
    _text("resource"),
)

artifacts = sa.Table(
    "artifacts",
    meta,
    _text("team", primary_key=True),
    _text("sha256", primary_key=True),
    sa.Column("size_bytes", sa.BigInteger),
    _text("media_type"),
    _text("key"),
    _time("created_at"),
    _time("condemned_at"),
    _time("swept_at"),
    _time("gone_at"),
)

uploads = sa.Table(
    "uploads",
    meta,
    _text("team", primary_key=True),
    _text("id", primary_key=True),
    _json("spec"),
    sa.Column("durable_offset", sa.BigInteger),
    _text("audio_id"),
    _time("expires_at"),
    _time("condemned_at"),
)

audios = sa.Table(
    "audios",
    meta,
    _text("team", primary_key=True),
    _text("id", primary_key=True),
    _text("display_name"),
    _text("purpose"),
    _text("sha256"),
    _json("measures"),
    _json("assessment"),
    _json("labels"),
    _json("provenance"),
    _text("source_audio"),
    _text("job_id"),
    _time("created_at"),
    _time("expires_at"),
    _time("condemned_at"),
)

voices = sa.Table(
    "voices",
    meta,
    _text("team", primary_key=True),
    _text("id", primary_key=True),
    _text("display_name"),
    _text("engine"),
    _text("state"),
    sa.Column("languages", ARRAY(sa.Text)),
    _json("clips"),
    sa.Column("training_audios", ARRAY(sa.Text)),
    _text("job_id"),
    _text("bundle"),
    _text("content_encoder"),
    sa.Column("rate_hz", sa.Integer),
    _text("weights_licence"),
    sa.Column("weights_trained", sa.Boolean),
    _text("consent"),
    _json("labels"),
    _json("metrics"),
    _text("package_sha256"),
    _time("created_at"),
    _time("deleted_at"),
)

bundles = sa.Table(
    "bundles",
    meta,
    _text("name", primary_key=True),
    _json("manifest"),
    _text("accepted_by"),
    _time("created_at"),
)

lexicons = sa.Table(
    "lexicons",
    meta,
    _text("team", primary_key=True),
    _text("id", primary_key=True),
    _text("display_name"),
    _text("language"),
    _json("entries"),
    _time("created_at"),
    _time("updated_at"),
)

usage_records = sa.Table(
    "usage_records",
    meta,
    _text("team"),
    _text("voice"),
    sa.Column("audio_s", sa.Float),
    sa.Column("work_s", sa.Float),
    sa.Column("characters", sa.Integer),
)
