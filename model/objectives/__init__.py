"""One training method per file; file name = config name."""
