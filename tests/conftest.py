from __future__ import annotations

from hypothesis import settings

# The machine that runs the tests is shared: a slow example says nothing. No database, so a checkout stays clean.
settings.register_profile("sluice", deadline=None, database=None)
# `pytest --hypothesis-profile=full`: ten times as many examples, and the model check at its full size.
settings.register_profile("full", deadline=None, database=None, max_examples=1000)
settings.load_profile("sluice")
