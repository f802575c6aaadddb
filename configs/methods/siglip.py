"""SigLIP (arXiv 2303.15343): the recipe is configs/siglip_emoji.py.

python train.py --config configs/siglip_emoji.py --workdir runs/siglip_emoji
The paper's own size: configs/siglip_b16.py. Expected: not run.
"""

from configs import siglip_emoji

METHOD = dict(
  title="Sigmoid Loss for Language Image Pre-Training",
  paper="arXiv 2303.15343",
  files=("model/losses/siglip.py",),
  tests=("tests/model/losses/test_siglip.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="sigmoid",
  negatives="batch",
  update="end-to-end",
)

get_config = siglip_emoji.get_config
