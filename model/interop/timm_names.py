"""Names of timm for SigLIP's image towers, which open_clip takes from there."""

from model.encoders.config import Modality
from model.interop import describe

# SigLIP's image towers in timm (1.0.31): width, depth, heads, mlp -> its name there.
TOWERS = {
  (768, 12, 12, 3072): "vit_base",
  (1024, 24, 16, 4096): "vit_large",
  (1152, 27, 16, 4304): "vit_so400m",
  (1536, 40, 16, 6144): "vit_giantopt",
}
# Name, patch -> sizes of images; those that are not in TANH have the exact GELU.
SIZES = {
  "vit_base_patch32": (256,),
  "vit_base_patch16": (224, 256, 384, 512),
  "vit_large_patch16": (256, 384, 512),
  "vit_so400m_patch14": (224, 378, 384),
  "vit_so400m_patch16": (256, 384, 512),
  "vit_giantopt_patch16": (256, 384),
}
TANH = (
  "vit_base_patch32_siglip_256",
  "vit_large_patch16_siglip_512",
  "vit_so400m_patch16",
  "vit_giantopt",
)


def activation(name: str) -> str:
  """Returns what an image tower of this name has in its layers."""
  return "gelu_tanh" if name.startswith(TANH) else "gelu"


def check(name: str, width: int, depth: int, mlp: int) -> None:
  """Holds the name of an image tower against its arrays.

  Raises:
    ValueError: timm's tower of this name has others.
  """
  for (w, d, _, m), stem in TOWERS.items():
    if name.startswith(f"{stem}_") and (w, d, m) != (width, depth, mlp):
      raise ValueError(
        f"open_clip_config.json has vision_cfg.timm_model_name = {name!r}, of width "
        f"{w}, depth {d} and mlp {m}, and the arrays make {width}, {depth} and {mlp}: "
        "the checkpoint is not whole, or its config is another model's"
      )


def of(image: Modality) -> str:
  """Returns what timm calls an image tower.

  Raises:
    ValueError: it has no such tower.
  """
  t, side = image.trunk, image.size[0]
  stem = f"{TOWERS.get((t.width, t.depth, t.heads, t.mlp))}_patch{image.patch[0]}"
  name = f"{stem}_siglip_{side}"
  kind = t.activation, t.epsilon
  if side not in SIZES.get(stem, ()) or kind != (activation(name), 1e-6):
    raise ValueError(
      "open_clip takes SigLIP's image towers from timm, which has none of width "
      f"{t.width}, depth {t.depth}, {t.heads} heads, mlp {t.mlp}, activation "
      f"{t.activation!r} and epsilon {t.epsilon} for images of {side} in patches of "
      f"{image.patch[0]} ({describe.WHERE}.trunk, .modalities.image)"
    )
  return name
