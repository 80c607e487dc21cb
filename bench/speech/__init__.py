"""What ``bench.f5`` speaks, and what it is compared with."""

import os
import secrets

# Read by Ray's C++ side when it is first imported, which this comes before: nobody else on this machine is to
# reach our Ray, and no file of the user's is to hold the token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
