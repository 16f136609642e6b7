"""Where vLLM keeps the names that this package imports, per version."""
