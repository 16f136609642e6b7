"""A run inside Locust: master, workers, and the end of the run."""
