"""GCL on emoji: queries of graded relevance (arXiv 2404.08535).

python train.py --config configs/methods/gcl_ranked.py --workdir runs/gcl_ranked
A query is a drawing's own name (grade 3), or that of its subgroup (2) or group (1), as
a search for "animal mammal" finds the cat. Rows of one query are no negatives.
Differences: three grades, not list positions 1 to 100; a document has one field.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Generalized Contrastive Learning for Multi-Modal Retrieval and Ranking",
  paper="arXiv 2404.08535",
  files=("model/losses/gcl.py", "input_pipeline/transforms/graded_query.py"),
  tests=("tests/model/losses/test_gcl.py",),
  positives="graded pairs",
  query="query text, and image",
  key="image, and query text",
  similarity="cosine",
  family="softmax",
  negatives="filtered batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  options = dict(top=3.0, weight="linear", query="query")
  c = emoji.method(arg, "gcl_ranked", ("gcl", 1.0, options))
  emoji.replace(
    c,
    "sample_caption",
    ("sample_caption", dict(main=1.0)),
    ("graded_query", {}),
  )
  return c
