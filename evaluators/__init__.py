"""One evaluator per file; file name = config name."""
