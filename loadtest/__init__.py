"""Load tests and benchmarks for Sluice and other OpenAI-compatible servers."""
