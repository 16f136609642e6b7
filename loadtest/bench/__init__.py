"""Benchmarks. They compare within one run and print figures; none of them is a test."""
