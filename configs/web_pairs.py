"""Image-text pairs at scale: the data of the clip_*, siglip_* and limoe_* recipes.

Nobody but you has your pairs: name a TFDS dataset (ArrayRecord files) whose examples
have an image and a text, `--config configs/clip_b16.py:data=my_pairs`. The tokenizer is
a sentencepiece model trained on your captions, made when the run first starts.

Other formats, by flags (see the README's table):
--config.data.source=webdataset --config.data.options='{"paths": "pairs/{split}-*.tar"}'
--config.data.source=jsonl --config.data.options='{"paths": "pairs/{split}.jsonl"}'
--config.data.source=image_folder --config.data.options='{"root": "photos/{split}"}'
"""

from ml_collections import ConfigDict

# Of `get_config(arg)`: the dataset, its features, and a size for a laptop.
ARGS = dict(data="", image="image", text="text", runlocal=False)


def set_data(c: ConfigDict, args: ConfigDict) -> None:
  """Fills `c.data` for images of config.model.modalities.image.size and their text."""
  size = c.model.modalities.image.size[0]
  pixels = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
  tokenize = ("tokenize", dict(length=c.model.modalities.text.length))
  c.data.source = "tfds"
  c.data.options = ConfigDict(
    dict(
      name=args.data,
      features=ConfigDict({args.image: "image", args.text: "captions"}),
    )
  )
  c.data.tokenizer = "{workdir}/tokenizer.model"
  c.data.transforms = (
    # It reads the bytes itself: a JPEG is decoded when its box is known. Evaluation,
    # below, decodes all of it.
    ("random_resized_crop", dict(size=(size, size), scale=(0.5, 1.0))),
    ("flip", {}),
    ("normalize", dict(pixels, device=True)),  # bytes until they are there
    ("sample_caption", {}),
    tokenize,
  )
  c.data.eval_transforms = (
    ("decode_image", {}),
    ("resize", dict(size=(size, size))),
    ("normalize", pixels),
    ("sample_caption", dict(train=False)),
    tokenize,
  )
  c.evaluators = (("retrieval", 10_000, dict(split="validation", limit=5000)),)
  c.checkpoint.every = 5000
  c.checkpoint.keep = 3
  c.checkpoint.best = "retrieval/i2t_r10"
  c.log_every = 50


def set_limoe(c: ConfigDict, experts: int, layers: tuple[int, ...] = ()) -> None:
  """Makes `c` a LIMoE: one trunk, experts in every second block or the given ones.

  Facts of arXiv 2206.02770 as far as known: top-1 routing, noise 1 / E, batch-priority
  routing, auxiliary weight 0.04 on the mean of the enabled losses, thresholds log 9
  (text) and log 20 (image) at 32 experts, scaled here for others.
  """
  c.model.shared_trunk = True
  c.model.moe.update(
    dict(every=2, layers=layers, experts=experts, k=1, capacity=1.05, capacity_eval=4.0)
  )
  share = experts / 32
  c.model.moe.min_experts = ConfigDict(
    dict(text=max(1.5, 9 * share), image=max(2.0, 20 * share))
  )
  # Half of what the entropy losses ask for.
  floors = {m: max(1.2, least / 2) for m, least in c.model.moe.min_experts.items()}
  c.model.moe.warn.effective_experts.update(floors)


def set_scaling_vit(c: ConfigDict, total_steps: int, batch_size: int) -> None:
  """Sets the optimizer of arXiv 2106.04560 (Adafactor, rsqrt), said to be LIMoE's."""
  c.total_steps = total_steps
  c.batch_size = batch_size
  c.optimizer.name = "adafactor"
  c.optimizer.moment_dtype = "bfloat16"
  c.optimizer.lr = 1e-3
  c.optimizer.schedule = "rsqrt"
  c.optimizer.warmup = 10_000
  c.optimizer.timescale = 10_000
  c.optimizer.cooldown = min(50_000, total_steps // 10)
  c.optimizer.weight_decay = 0.1
  c.optimizer.clip = 1.0


def finish(
  c: ConfigDict, args: ConfigDict, *, remat: str = "dots", **mesh: int
) -> ConfigDict:
  """Sets the data and, with `runlocal`, shrinks everything to what a laptop runs.

  Args:
    c: the recipe so far.
    args: of `get_config`, parsed.
    remat: `config.model.remat`.
    **mesh: `config.mesh`, an axis that is absent being 1; default fsdp=-1.
  """
  c.model.dtype = "bfloat16"
  c.model.scan = True
  c.model.remat = remat
  c.mesh.update(dict(data=1, fsdp=1, expert=1, tensor=1) | (mesh or dict(fsdp=-1)))
  if args.runlocal:
    c.model.dtype = "float32"
    c.model.embed_dim = 32
    c.model.trunk.update(dict(width=32, depth=4, heads=2, mlp=64))
    for m in c.model.modalities.values():
      m.trunk = ConfigDict({k: v for k, v in m.trunk.items() if k == "causal"})
    c.model.modalities.image.update(dict(size=(32, 32, 3), patch=(8, 8)))
    c.model.modalities.text.update(dict(vocab=512, length=16))
    c.model.moe.update(dict(experts=4, group=4))
    if c.model.moe.layers:
      c.model.moe.layers = (1, 3)
    c.model.moe.min_experts = ConfigDict(dict(text=1.5, image=2.0))
    c.model.moe.warn.effective_experts.update(dict(text=1.2, image=1.2))
    c.total_steps, c.batch_size = 4, 16
    c.optimizer.update(dict(warmup=1, cooldown=0))
    c.mesh.update(dict(data=-1, fsdp=1, expert=1))
  set_data(c, args)
  if args.runlocal:
    c.evaluators = ()
    c.checkpoint.best = ""
    c.log_every = 1
  return c
