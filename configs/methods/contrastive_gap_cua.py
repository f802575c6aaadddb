"""CUAXU on emoji: uniformity and alignment close the gap (arXiv 2405.18570).

python train.py --config configs/methods/contrastive_gap_cua.py --workdir runs/cua
Differences: from scratch, not fine-tuning of a trained CLIP, hence CLIP's temperature
and not 0.01. The evaluator health measures the gap.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap",
  paper="arXiv 2405.18570",
  files=("model/losses/cua.py",),
  tests=("tests/model/losses/test_cua.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "contrastive_gap_cua", ("cua", 1.0, dict(across=1.0)))
