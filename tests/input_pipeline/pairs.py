"""Synthetic pairs of pictures and captions, and a config that reads them."""

import io

import numpy as np
from PIL import Image

from configs import base

WORDS = (
  *("red", "green", "blue", "round", "square", "tall", "small", "old", "new", "bright"),
  *("dark", "cat", "dog", "tree", "house", "bird", "fish", "yellow", "purple", "tiny"),
)


def png(array) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
  return file.getvalue()


def pair(i: int) -> dict:
  """One synthetic example: a picture of noise, and a name in two languages."""
  rng = np.random.default_rng(i)
  words = [WORDS[j] for j in rng.integers(len(WORDS), size=3)]
  return {
    "image_bytes": png(rng.integers(0, 255, (20, 24, 3))),
    "captions": {"en": [" ".join(words), f"{words[0]} {i}"], "fr": [f"le {words[1]}"]},
    "id": i // 2,
    "label_kind": i % 3,
  }


def make_config(paths, tokenizer, **data):
  c = base.get_config()
  c.batch_size = 12
  c.model.modalities.image.size = (16, 16, 3)
  c.model.modalities.text.update(dict(vocab=300, length=12))
  c.data.source = "arrayrecord"
  c.data.options = {"paths": str(paths)}
  c.data.tokenizer = str(tokenizer)
  rest = (
    ("normalize", {}),
    ("sample_caption", dict(share=0.5)),
    ("tokenize", {}),
  )
  c.data.transforms = (
    ("decode_image", {}),
    ("random_resized_crop", dict(scale=(0.5, 1.2), rotate=10.0)),
    ("flip", {}),
    ("color", {}),
    *rest,
  )
  c.data.eval_transforms = (
    ("decode_image", {}),
    ("resize", {}),
    ("normalize", {}),
    ("sample_caption", dict(train=False)),
    ("tokenize", {}),
  )
  c.data.update(data)
  return c
