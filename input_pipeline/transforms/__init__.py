"""One numpy transform per file; file name = config name."""
