"""Kernel-InfoNCE on emoji: a Laplacian beside the Gaussian (arXiv 2303.15103).

python train.py --config configs/methods/kernel_infonce.py --workdir runs/kernel_infonce
Differences: images and names, not two views of an image; equal shares of both kernels.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Contrastive Learning Is Spectral Clustering On Similarity Graph",
  paper="arXiv 2303.15103",
  files=("model/losses/kernel_infonce.py",),
  tests=("tests/model/losses/test_kernel_infonce.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="distance",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  options = dict(gamma=1.0, temperature=0.1, share=0.5)
  return emoji.method(arg, "kernel_infonce", ("kernel_infonce", 1.0, options))
