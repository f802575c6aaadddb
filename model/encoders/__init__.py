"""Towers: raw modalities to embeddings."""
