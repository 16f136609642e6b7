from __future__ import annotations

from hypothesis import settings

# The machine that runs the tests is shared: a slow example says nothing. No database, so a checkout stays clean.
settings.register_profile("sluice", deadline=None, database=None)
settings.load_profile("sluice")
