"""Parameters of other libraries as ours and back: dict -> dict of numpy arrays."""
