"""Upstream's RVC packages, each run in an interpreter of its own: what ours is compared with."""
