"""Fixtures live in ``tests/plugins``; this file only names them."""

pytest_plugins = ["tests.plugins.embedded"]
