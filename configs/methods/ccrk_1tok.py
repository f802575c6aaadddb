"""1-to-K on emoji: a drawing and its names in four languages (arXiv 2406.18254).

python train.py --config configs/methods/ccrk_1tok.py --workdir runs/ccrk_1tok
Differences: the loss alone, without matching by a cross encoder or masked words; names
of the Unicode data, not machine translations; a tower per language, not one for all.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title=(
    "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with "
    "1-to-K Contrastive Learning"
  ),
  paper="arXiv 2406.18254",
  files=("model/losses/ccrk.py",),
  tests=("tests/model/losses/test_ccrk.py",),
  positives="tuples",
  query="image, and each text",
  key="texts of all languages",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "ccrk_1tok")
  texts = emoji.add_languages(c, "de", "es", "fr")
  c.objective.options.losses = (("ccrk", 1.0, dict(many=("text", *texts))),)
  return c
