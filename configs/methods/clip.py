"""CLIP (arXiv 2103.00020): the recipe is configs/clip_emoji.py.

python train.py --config configs/clip_emoji.py --workdir runs/clip_emoji
The paper's own size: configs/clip_b16.py. Expected: the tables of README.md.
"""

from configs import clip_emoji

METHOD = dict(
  title="Learning Transferable Visual Models From Natural Language Supervision",
  paper="arXiv 2103.00020",
  files=("model/losses/infonce.py",),
  tests=("tests/model/losses/test_infonce.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)

get_config = clip_emoji.get_config
