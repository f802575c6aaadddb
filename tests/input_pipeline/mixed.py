"""Sources of different kinds and sizes in memory, and configs that mix them."""

import itertools

import numpy as np

from configs import base
from input_pipeline import pipeline
from input_pipeline.sources import in_memory
from tests.input_pipeline.pairs import WORDS, png

PNG = png(np.zeros((4, 4, 3)))  # a picture of 4 x 4 pixels
SIZES = dict(pairs=23, images=11, texts=7)
RESIZED = (("normalize", {}),)
TOLD = (("sample_caption", {}), ("tokenize", {}))


def captions(n, seed):
  """Texts of one to eight words."""
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS, 1 + i % 8)) for i in range(n)]


def pixels(n, seed):
  return np.random.default_rng(seed).integers(0, 255, (n, 4, 4, 3)).astype(np.uint8)


def put(sizes=SIZES, prefix=""):
  for seed, (name, n) in enumerate(sizes.items()):
    columns = {}
    if name != "texts":
      columns["image"] = pixels(n, seed)
    if name != "images":
      columns["captions"] = captions(n, seed)
      columns["label_words"] = np.array([len(c.split()) for c in columns["captions"]])
    in_memory.put(prefix + name, **columns)


def make_config(tokenizer, mixture=(), **data):
  c = base.get_config()
  c.batch_size = 8
  c.model.modalities.image.size = (4, 4, 3)
  c.model.modalities.text.update(dict(vocab=300, length=12))
  c.data.source = "in_memory"
  c.data.options = {"name": "pairs"}
  c.data.tokenizer = str(tokenizer)
  c.data.transforms = c.data.eval_transforms = (*RESIZED, *TOLD)
  c.data.threads = 0
  c.data.mixture = mixture
  c.data.update(data)
  return c


def entry(name, weight, source=None, **changes):
  source = source or name
  shorter = dict(images=RESIZED, texts=TOLD)
  if source in shorter:
    own = shorter[source]
    changes = dict(transforms=own, eval_transforms=own) | changes
  return (name, weight, dict(options=dict(name=source), **changes))


def batches(config, n, index=0, count=1, state=None):
  made = pipeline.train_loader(config, process_index=index, process_count=count)
  if state:
    made.restore(state)
  out = list(itertools.islice(made, n))
  made.close()
  return out, made


def column(got, key):
  return np.concatenate([b[key] for b in got])
