"""Fakes for unit tests: virtual time, a scripted engine, recorded facts, an ASGI client, the HTTP edge of them, and a
server on the loopback that cuts connections."""
