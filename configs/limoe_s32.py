"""LIMoE S/32 from scratch on image-text pairs (arXiv 2206.02770).

python train.py --config configs/limoe_s32.py:data=my_tfds --workdir gs://bucket/run
The mesh is for 32 chips or a multiple; on fewer: --config.mesh.expert=N.
Compiled for 256 v5e (docs/scale.md): 1.0 of 15.75 GiB; not run.
32 experts in every second block: 4 of 8.
Differences from the paper, where it is known: no JFT class names among the captions, a
sentencepiece vocabulary trained on your own captions, AdamW's place taken by optax's
factored RMS with a bfloat16 first moment. Not run at scale by us: no figure is claimed.
"""

from configs import args as args_lib
from configs import base, sizes, web_pairs


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **web_pairs.ARGS)
  c = base.get_config()
  c.name = "limoe_s32"
  sizes.set_trunk(c.model.trunk, "S")
  c.model.embed_dim = c.model.trunk.width
  image = base.modality(size=(224, 224, 3), patch=(32, 32))
  text = base.modality(stem="tokens", vocab=32_000, length=16)
  c.model.modalities.image = image
  c.model.modalities.text = text
  web_pairs.set_limoe(c, experts=32, layers=())
  web_pairs.set_scaling_vit(c, total_steps=781_250, batch_size=16_384)
  # All examples of a chip of 256: of 65 tokens each, 8 would make 20 slots an expert of
  # the 17.06 that 1.05 asks for, as slots come in fours; 64 make 140 of 136.5.
  c.model.moe.group = 64
  # One expert a chip: its tokens travel, its weights stay, and everything else is small
  # enough to be whole on each chip. "dots" although all activations would fit: to
  # compute some of them again costs less than to write and read them.
  return web_pairs.finish(c, args, remat="dots", data=-1, expert=32)
