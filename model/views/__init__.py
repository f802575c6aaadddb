"""Views of a batch made on the device."""
