"""Metadata's use cases, one module a concern."""
