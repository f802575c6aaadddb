"""LIMoE (arXiv 2206.02770): the recipe is configs/limoe_emoji.py.

python train.py --config configs/limoe_emoji.py --workdir runs/limoe_emoji
The paper's own sizes: configs/limoe_s32.py, limoe_b16.py, limoe_l16.py, limoe_h14.py.
Expected: the tables of README.md.
"""

from configs import limoe_emoji

METHOD = dict(
  title=(
    "Multimodal Contrastive Learning with LIMoE: the Language-Image Mixture of Experts"
  ),
  paper="arXiv 2206.02770",
  files=("model/moe/layer.py", "model/moe/aux.py"),
  tests=("tests/model/moe/test_moe_layer.py", "tests/model/moe/test_moe_aux.py"),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)

get_config = limoe_emoji.get_config
