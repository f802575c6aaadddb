"""Pure functions of (params, arrays): encoders, layers, heads, losses, objectives."""
