"""Widths and depths of the Vision Transformer family, as ViT and V-MoE name them."""

from ml_collections import ConfigDict

SIZES = {
  # V-MoE's S has 8 blocks of 8 heads, unlike DeiT-S; its H is ViT-H.
  "S": dict(width=512, depth=8, mlp=2048, heads=8),
  "B": dict(width=768, depth=12, mlp=3072, heads=12),
  "L": dict(width=1024, depth=24, mlp=4096, heads=16),
  "H": dict(width=1280, depth=32, mlp=5120, heads=16),
}


def set_trunk(trunk: ConfigDict, size: str) -> None:
  """Sets the width, depth, heads and mlp of a trunk to those of a named size."""
  trunk.update(SIZES[size])
