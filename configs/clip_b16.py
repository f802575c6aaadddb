"""CLIP ViT-B/16 from scratch on image-text pairs (arXiv 2103.00020).

python train.py --config configs/clip_b16.py:data=my_tfds --workdir gs://bucket/run
Differences from the paper: a sentencepiece vocabulary of 32,000 instead of CLIP's byte
pairs (49,408), mean 0.5 normalisation, no activation checkpointing beyond "dots". Not
run at scale by us: no figure is claimed.
"""

from configs import args as args_lib
from configs import base, sizes, web_pairs


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **web_pairs.ARGS)
  c = base.get_config()
  c.name = "clip_b16"
  c.total_steps = 390_625  # 12.8 B pairs: 32 epochs of 400 M
  c.batch_size = 32_768
  sizes.set_trunk(c.model.trunk, "B")
  c.model.embed_dim = 512
  image = base.modality(size=(224, 224, 3), patch=(16, 16), pool="cls", stem_norm=True)
  text = base.modality(stem="tokens", vocab=32_000, length=77, pool="last")
  text.trunk.update(dict(width=512, heads=8, mlp=2048, causal=True))
  c.model.modalities.image = image
  c.model.modalities.text = text
  c.optimizer.update(dict(lr=5e-4, warmup=2000, weight_decay=0.2, b2=0.98, clip=1.0))
  return web_pairs.finish(c, args)
