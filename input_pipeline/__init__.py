"""Grain pipelines: sources, transforms, tokenizer, resumable loader."""
