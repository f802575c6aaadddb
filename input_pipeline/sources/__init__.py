"""One source of examples per file; file name = config name."""
