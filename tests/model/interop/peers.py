"""The other libraries' models, tiny and random, and every layer's output of both sides.

Nothing but the tests that compare with them needs these libraries.
"""

import contextlib
import functools
import warnings

import jax
import numpy as np
import pytest

from model.encoders import towers

IMAGE = dict(size=12, patch=4)
TEXT = dict(vocab=19, length=6)
TOLERANCE = 1e-5


@contextlib.contextmanager
def quiet():
  """Other libraries warn of what is theirs."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


def library(name):
  """Imports torch and a library that builds on it, or skips the test."""
  with quiet():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    try:
      import torchvision  # noqa: F401
    except ImportError:
      pass
    except RuntimeError:  # built for CUDA beside torch for CPU: see benchmarks
      kernels = torch.library.Library("torchvision", "DEF")
      library.kernels = kernels  # they live as long as this
      for kernel in ("nms", "qnms"):
        kernels.define(f"{kernel}(Tensor dets, Tensor scores, float iou) -> Tensor")
    return torch, pytest.importorskip(name, exc_type=ImportError)


def randomised(torch, model):
  """Gives every parameter a value of its own: initial biases are zeros."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(0.3 * torch.randn(p.shape, generator=generator) + (p.ndim == 1) * 0.5)
  return model.eval()


def state_of(model):
  return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


def batch_of(eos):
  """Returns ours and theirs: images and texts, with id 0 inside and ids behind eos."""
  rng = np.random.default_rng(1)
  side = IMAGE["size"]
  image = rng.standard_normal((3, side, side, 3)).astype(np.float32)
  ids = rng.integers(1, TEXT["vocab"] - 1, (3, TEXT["length"])).astype(np.int32)
  ids[0, 1] = 0
  if eos >= 0:
    ids[np.arange(3), [3, 5, 2]] = eos
  ours = {"image": image, "text": ids}
  return ours, (image.transpose(0, 3, 1, 2).copy(), ids.astype(np.int64))


def recorded(torch, modules, call):
  """Returns (call(), label -> output of that module while it was called)."""
  seen = {}

  def keep(label):
    def hook(module, args, output):
      del module, args
      seen[label] = output[0] if isinstance(output, tuple) else output

    return hook

  handles = [m.register_forward_hook(keep(label)) for label, m in modules.items()]
  with torch.no_grad():
    result = call()
  for handle in handles:
    handle.remove()
  return result, {k: v.numpy() for k, v in seen.items()}


def ours(config, params, batch):
  """Returns label -> output of every block, the pooled embeddings, and the logits."""
  net = towers.build(config.model)
  apply = functools.partial(net.apply, capture_intermediates=True)
  encoded, state = jax.jit(apply)({"params": params["towers"]}, batch)
  out = {}
  for m in batch:
    trunk = state["intermediates"][f"trunk_{m}"]
    for block in sorted(k for k in trunk if k.startswith("block_")):
      out[f"{m}/{block}"] = trunk[block]["__call__"][0][0][m]
    out[f"{m}/tokens"] = encoded[0][m].tokens
    out[f"{m}/embedding"] = encoded[0][m].pooled
  masks = {m: np.asarray(encoded[0][m].mask) for m in batch}
  if len(batch) == 1:
    return jax.tree.map(np.asarray, out), masks.get("text")
  unit = {
    m: e / np.linalg.norm(e, axis=-1, keepdims=True)
    for m, e in ((m, np.asarray(out[f"{m}/embedding"])) for m in batch)
  }
  (loss,) = params["objective"].values()
  logits = np.exp(loss["log_scale"]) * unit["image"] @ unit["text"].T
  out["logits"] = logits + loss.get("bias", np.float32(0))
  return jax.tree.map(np.asarray, out), masks["text"]


def compare(got, want, mask):
  """Holds outputs against each other, label by label; of texts, the real tokens."""
  assert set(got) == set(want)
  for label in want:
    a, b = got[label], want[label]
    if label.startswith("text/") and a.ndim == 3:
      a, b = a[mask], b[mask]
    assert a.shape == b.shape, label
    error = np.abs(a - b).max() / np.abs(b).max()
    assert error <= TOLERANCE, f"{label}: relative difference {error}"
