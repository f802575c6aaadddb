"""SigLIP ViT-B/16 from scratch on image-text pairs (arXiv 2303.15343).

python train.py --config configs/siglip_b16.py:data=my_tfds --workdir gs://bucket/run
Differences from the paper: a sentencepiece vocabulary of the captions instead of C4's,
AdamW instead of ScalingViT-Adafactor. Not run at scale by us: no figure is claimed.
"""

from configs import args as args_lib
from configs import base, sizes, web_pairs


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **web_pairs.ARGS)
  c = base.get_config()
  c.name = "siglip_b16"
  c.total_steps = 1_220_703  # 40 B pairs
  c.batch_size = 32_768
  sizes.set_trunk(c.model.trunk, "B")
  c.model.embed_dim = 768
  image = base.modality(size=(224, 224, 3), patch=(16, 16), pool="map", project=False)
  text = base.modality(stem="tokens", vocab=32_000, length=64, pool="last")
  c.model.modalities.image = image
  c.model.modalities.text = text
  c.objective.options.losses = (("siglip", 1.0, dict(pairs=base.IMAGE_TEXT)),)
  c.optimizer.update(dict(lr=1e-3, warmup=20_000, weight_decay=1e-4, b2=0.95, clip=1.0))
  return web_pairs.finish(c, args)
