"""From settings to a running engine: arguments, environment, processes, and sentences about starts that failed."""
