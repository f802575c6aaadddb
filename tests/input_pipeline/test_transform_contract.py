"""What every transform keeps to, whichever file it is."""

import pickle

from model import catalogue

# What has no default.
NEEDED = {
  "corrupt": dict(kind="blur"),
  "decode_audio": dict(rate=8000, seconds=1.0),
  "decode_video": dict(frames=2, size=(8, 8)),
  "id_from_label": dict(label="kind"),
  "keep": dict(keys=("family",)),
  "noun_labels": dict(classes=8),
  "one_hot": dict(labels=(("kind", 3),)),
  "pair_classes": dict(label="kind"),
  "random_resized_crop": dict(size=(8, 8)),
  "resize": dict(size=(8, 8)),
  "series": dict(length=8, channels=2),
  "text_patches": dict(length=4, chars=8),
  "tokenize": dict(tokenizer="path", length=4, vocab=300),
}


def test_every_transform_keeps_to_the_contract():
  for name in catalogue.names("input_pipeline.transforms"):
    cls = catalogue.find("input_pipeline.transforms", name, "Transform")
    transform = cls(**NEEDED.get(name, {}))
    assert transform.reads
    assert transform.writes
    assert hash(transform) == hash(pickle.loads(pickle.dumps(transform)))
