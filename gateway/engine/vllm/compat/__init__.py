"""What differs between the supported releases of vLLM, and everything of its internals that is used."""
