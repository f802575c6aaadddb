"""LIMoE H/14 from scratch on image-text pairs (arXiv 2206.02770).

python train.py --config configs/limoe_h14.py:data=my_tfds --workdir gs://bucket/run
The mesh is for 32 chips or a multiple; on fewer: --config.mesh.expert=N. On v5p:
--config.model.remat=dots --config.model.moe.pieces=2 (docs/scale.md).
About 5.6 B parameters, 0.675 B active per token: 32 experts in 12 of 32 blocks; which
ones is not known, assumed are the last twelve of every second one. The high-resolution
end phase is left out.
Differences from the paper, where it is known: no JFT class names among the captions, a
sentencepiece vocabulary trained on your own captions, AdamW's place taken by optax's
factored RMS with a bfloat16 first moment. Not run at scale by us: no figure is claimed.
"""

from configs import args as args_lib
from configs import base, sizes, web_pairs


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **web_pairs.ARGS)
  c = base.get_config()
  c.name = "limoe_h14"
  sizes.set_trunk(c.model.trunk, "H")
  c.model.embed_dim = c.model.trunk.width
  image = base.modality(size=(224, 224, 3), patch=(14, 14))
  text = base.modality(stem="tokens", vocab=32_000, length=16)
  c.model.modalities.image = image
  c.model.modalities.text = text
  web_pairs.set_limoe(c, experts=32, layers=tuple(range(9, 32, 2)))
  web_pairs.set_scaling_vit(c, total_steps=700_000, batch_size=21_504)
  # 21,504 examples are 84 a chip on 256 chips and 42 on 512: both are whole groups. Of
  # 272 tokens each, 42 make 376 slots an expert, 1.053 times the mean.
  c.model.moe.group = 42
  # One expert a chip: its tokens travel, its weights stay but for what fsdp splits.
  # "full": by arithmetic "dots" keeps 14 GiB of activations on each of 256 v5e, of
  # 15.75 (84 examples * 272 tokens * 1280 in bf16 * (20 dense blocks * 10 + 12 * 5)).
  return web_pairs.finish(c, args, remat="full", fsdp=-1, expert=32)
