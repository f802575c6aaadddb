"""PCME on emoji: drawings and names as Gaussians, which may match (arXiv 2101.05068).

python train.py --config configs/methods/pcme.py --workdir runs/pcme
Differences: towers trained from scratch at once, AdamW; the variances start small, so
that draws of one example lie nearer to each other than to those of others: in 128
dimensions they are sqrt(2 * 128) exp(-6 / 2) = 0.8 apart. Evaluated by the means.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Probabilistic Embeddings for Cross-Modal Retrieval",
  paper="arXiv 2101.05068",
  files=(
    "model/losses/pcme.py",
    "model/losses/sets.py",
    "model/heads/probabilistic.py",
  ),
  tests=(
    "tests/model/losses/test_pcme.py",
    "tests/model/heads/test_probabilistic.py",
  ),
  positives="pairs",
  query="draws of each modality",
  key="draws of the other",
  similarity="probability",
  family="sigmoid",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "pcme", ("pcme", 1.0, {}))
  head = ("probabilistic", dict(draws=7, log_var=-6.0))
  c.objective.options.heads = ((("image", "text"), *head),)
  return c
