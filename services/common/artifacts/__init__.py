"""The artefact store: bytes in S3 under names that say what they hold.

Bytes come before rows: an artefact is stored and verified first, and becomes visible by the one
transaction that names it.
"""
