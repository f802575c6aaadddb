"""Building blocks of a transformer."""
