"""Shared by all kinds of tests: virtual time, the scripted engine, one harness, servers, clients and probes."""
