"""The fast path from the engine's output to text, and statistics in batches."""
