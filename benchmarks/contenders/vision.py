"""torchvision, also where its wheel and torch's are of different kinds."""

import torch

try:
  import torchvision
except RuntimeError:
  # Its wheel on PyPI is built for CUDA. Beside torch for CPU its kernels do not load,
  # and its import ends where it describes the first of them. Nobody here uses one.
  _KERNELS = torch.library.Library("torchvision", "DEF")
  for _name in ("nms", "qnms"):
    _KERNELS.define(f"{_name}(Tensor dets, Tensor scores, float iou) -> Tensor")
  import torchvision

from torchvision.transforms import v2

__all__ = ["torchvision", "v2"]
