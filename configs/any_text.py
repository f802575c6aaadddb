"""Texts and one other modality: what the <modality>_text recipes share.

Data: what `tools.prepare_data` makes of any source in prepared/, or ArrayRecord files
elsewhere (`:paths=...`), of examples with `captions` and what the recipe names on top.
Other sources by --config.data.source and .options. With `runlocal` the source is
"synthetic", and nothing is needed.
"""

from ml_collections import ConfigDict

from configs import base

ARGS = dict(paths="prepared/{split}/data.array_record*", runlocal=False, seed=0)
TINY_RATE, TINY_HOP = 4000, 100  # of sounds, with runlocal


def text(**changes) -> ConfigDict:
  """The entry of `config.model.modalities` for captions."""
  return base.modality(**(dict(stem="tokens", vocab=16_000, length=64) | changes))


def finish(
  c: ConfigDict, args: ConfigDict, pairs, train, evaluate, tiny: dict, captions=()
) -> ConfigDict:
  """Sets what does not depend on the modality.

  Args:
    c: the recipe so far.
    args: of `get_config`, parsed.
    pairs: of modalities, to be contrasted and evaluated.
    train: transforms of the modalities other than the text.
    evaluate: the same, of evaluation.
    tiny: modality -> changes with `runlocal`.
    captions: options of sample_caption, as pairs.
  """
  c.seed = args.seed
  c.model.dtype = "bfloat16"
  c.mesh.update(dict(data=1, fsdp=-1))
  c.optimizer.update(dict(lr=5e-4, warmup=2000, weight_decay=0.2))
  c.data.source = "arrayrecord"
  c.data.options = ConfigDict(dict(paths=args.paths))
  c.data.tokenizer = "{workdir}/tokenizer.model"
  some = ("sample_caption", dict(captions))
  c.data.transforms = (*train, some, ("tokenize", {}))
  first = ("sample_caption", dict(captions) | dict(train=False))
  c.data.eval_transforms = (*evaluate, first, ("tokenize", {}))
  every = 2000
  if args.runlocal:
    c.model.dtype = "float32"
    c.model.embed_dim = 16
    c.model.trunk.update(dict(width=32, depth=1, heads=2, mlp=64))
    c.model.modalities.text.update(dict(vocab=280, length=8))
    for name, changes in tiny.items():
      c.model.modalities[name].update(changes)
    c.data.source, c.data.options = "synthetic", ConfigDict(dict(count=240))
    c.optimizer.update(dict(lr=3e-3, warmup=5))
    c.mesh.update(dict(data=-1, fsdp=1))
    c.total_steps, c.batch_size, c.log_every, every = 60, 48, 10, 0
  c.evaluators = (("retrieval", every, dict(split="test", pairs=pairs)),)
  return c
