"""What Ray reads when it is loaded: whoever imports Ray imports this before."""

import os

# Else it would report its use to its makers, frame what it is about to do, and listen on every address of this machine
# for whoever comes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux as well: a Ray of one machine, on loopback
os.environ.setdefault("RAY_AUTH_MODE", "token")
