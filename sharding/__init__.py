"""Mesh, partition rules, placement, multi-host bring-up."""
