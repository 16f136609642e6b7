"""Fakes for unit tests: virtual time, a scripted engine, recorded facts, an ASGI client, and the HTTP edge of them."""
