"""Fixtures live in ``tests/plugins``; this file only names them."""

import os
import secrets

# Ray's C++ side reads these once, when some test first imports it: a Ray that a later test starts in this
# process would ask for a token that the process does not know.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

pytest_plugins = ["tests.plugins.embedded"]
