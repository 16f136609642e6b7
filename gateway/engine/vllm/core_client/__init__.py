"""The client of the engine process, which outlives that process: restart, replay, receive."""
