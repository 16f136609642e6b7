"""Benchmarks. They compare in one run and print figures; nothing here is a test."""
