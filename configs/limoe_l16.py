"""LIMoE L/16 from scratch on image-text pairs (arXiv 2206.02770).

python train.py --config configs/limoe_l16.py:data=my_tfds --workdir gs://bucket/run
The mesh is for 32 chips or a multiple; on fewer: --config.mesh.expert=N.
About 1.7 B parameters, 0.3 B active per token. The published totals fix how many blocks
are sparse but not which: 32 experts in five blocks give 1.64 B; assumed are the last
five of every second one, V-MoE's "Last-5" (arXiv 2106.05974).
Differences from the paper, where it is known: no JFT class names among the captions, a
sentencepiece vocabulary trained on your own captions, AdamW's place taken by optax's
factored RMS with a bfloat16 first moment. Not run at scale by us: no figure is claimed.
"""

from configs import args as args_lib
from configs import base, sizes, web_pairs


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **web_pairs.ARGS)
  c = base.get_config()
  c.name = "limoe_l16"
  sizes.set_trunk(c.model.trunk, "L")
  c.model.embed_dim = c.model.trunk.width
  image = base.modality(size=(224, 224, 3), patch=(16, 16))
  text = base.modality(stem="tokens", vocab=32_000, length=16)
  c.model.modalities.image = image
  c.model.modalities.text = text
  web_pairs.set_limoe(c, experts=32, layers=(15, 17, 19, 21, 23))
  web_pairs.set_scaling_vit(c, total_steps=781_250, batch_size=16_384)
  # One expert a chip: its tokens travel, its weights stay but for what fsdp splits.
  return web_pairs.finish(c, args, remat="dots", fsdp=-1, expert=32)
