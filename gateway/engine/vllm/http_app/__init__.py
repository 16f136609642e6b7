"""vLLM's own HTTP app on our engine: the proxy, untrusted fields, error bodies."""
