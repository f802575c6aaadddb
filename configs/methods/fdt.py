"""FDT on emoji: patches and word pieces meet in a dictionary (arXiv 2303.14865).

python train.py --config configs/methods/fdt.py --workdir runs/fdt
Differences: 512 codes, not 16,384, and a temperature of 10, not 1000, for as large a
share of them in use; padding has no relevance, where the released code gives it 0.
The towers' pooled embeddings are not used.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Revisiting Multimodal Representation in Contrastive Learning: From Patch and "
  "Token Embeddings to Finite Discrete Tokens",
  paper="arXiv 2303.14865",
  files=("model/heads/codebook.py", "model/layers/sparsemax.py"),
  tests=("tests/model/heads/test_codebook.py", "tests/model/layers/test_sparsemax.py"),
  positives="pairs",
  query="codes of each modality",
  key="codes of the other",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "fdt")
  head = dict(codes=512, width=c.model.embed_dim, temperature=10.0)
  c.objective.options.heads = ((("image", "text"), "codebook", head),)
  return c
