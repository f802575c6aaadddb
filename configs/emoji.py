"""The emoji set: 1,923 drawings named in 14 languages (packages; see NOTICE).

What the *_emoji recipes and those of configs/methods share: data, augmentation,
evaluators. A fifth of the concepts,
whole families of them, is the test split: not drawn, named or toned while training.
Settings chosen by looking at it would flatter themselves. With the argument `tune` an
eighth more is held out, every evaluator reads that instead, and the best checkpoint is
kept too; without it the last checkpoint is what is reported.
"""

from ml_collections import ConfigDict

from configs import args as args_lib
from configs import base

SIZE = 48  # pixels; the drawings have 72
MEAN, STD = 0.75, 0.35  # of pixel values in 0..1
# Of config.optimizer.frozen: everything of the image's own tower, its wide path too.
IMAGE_TOWER = "towers/[a-z]+_image/"
# Of `get_config(arg)`.
ARGS = dict(seed=0, runlocal=False, styles=False, tune=False)
METHOD_ARGS = dict(seed=0, runlocal=False, tune=False)  # of configs/methods


def set_data(c: ConfigDict, seed: int) -> None:
  """Fills `c.data`: crops, colours, captions in every language, skin tones."""
  c.seed = seed
  normalize = ("normalize", dict(mean=(MEAN,) * 3, std=(STD,) * 3))
  # Decoded once, then kept: 4,000 small pictures fit in memory.
  decode = ("decode_image", dict(cache=16_384))
  c.data.source = "emoji"
  c.data.options = ConfigDict(
    dict(
      seed=seed,
      test_share=0.2,
      validation_share=0.0,
      skin_tones=True,
      tone_limit=1,
      languages=("en",),
    )
  )
  c.data.tokenizer = "{workdir}/tokenizer.model"
  c.data.transforms = (
    decode,
    ("random_resized_crop", dict(scale=(0.7, 1.35), ratio=(0.88, 1.14))),
    (
      "color",
      dict(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.03, grayscale=0.05),
    ),
    normalize,
    ("sample_caption", dict(main=1.0)),
    ("tokenize", dict(nbest=16)),
  )
  c.data.eval_transforms = (
    decode,
    ("resize", {}),
    normalize,
    ("sample_caption", dict(train=False)),
    ("tokenize", {}),
  )
  c.data.threads = 2


def set_model(c: ConfigDict) -> None:
  """Sets the sizes that every emoji recipe shares."""
  c.model.embed_dim = 128
  c.model.trunk.update(dict(width=128, depth=2, heads=2, mlp=512, dropout=0.1))
  c.model.modalities.image = base.modality(
    size=(SIZE, SIZE, 3),
    patch=(8, 8),
    gradients=(8, 8),
    colors=(3, 4),
    color_range=((0 - MEAN) / STD, (1 - MEAN) / STD),
    drop_descriptors=0.5,
    drop_patches=1 / 3,
    position="sincos",
    stem_norm=True,
  )
  # So few ids that rare words fall into syllables which other words share.
  c.model.modalities.text = base.modality(
    stem="tokens", vocab=1024, length=16, stem_norm=True, ngrams=64, drop_ngrams=0.5
  )


def set_moe(c: ConfigDict) -> None:
  """One trunk for both modalities, 8 experts in every second block: a small LIMoE."""
  c.model.shared_trunk = True
  c.model.moe.update(dict(every=2, experts=8, k=1, group=32, capacity=1.25))
  c.model.moe.min_experts = ConfigDict(dict(text=3.0, image=5.0))


def set_training(c: ConfigDict) -> None:
  """Sets what fits in about five minutes on two CPU cores."""
  c.batch_size = 128
  c.total_steps = 800
  c.ema = 0.99
  c.optimizer.update(dict(lr=2e-3, warmup=50, weight_decay=0.1, clip=1.0))
  c.log_every = 10
  c.checkpoint.update(dict(every=150, keep=2))
  c.objective.options.losses = (
    ("infonce", 1.0, dict(pairs=base.IMAGE_TEXT, temperature=0.07, max_scale=50.0)),
  )


def set_evaluators(
  c: ConfigDict, every: int, routing: bool = False, held_out: str = "test"
) -> None:
  """Sets the evaluators: retrieval, also on train, zero-shot, health, routing."""
  flags = (("flag", 1),)
  train = dict(skin_tones=False)
  prompts = dict(templates=("{}", "{} emoji", "a picture of {}"))
  c.evaluators = (
    ("retrieval", every, dict(split=held_out, without=flags)),
    (
      "retrieval",
      0,
      dict(name="retrieval_train", split="train", without=flags, source=train),
    ),
    ("zero_shot", 0, dict(split=held_out, labels=("group",), **prompts)),
    (
      "zero_shot",
      0,
      dict(
        name="zero_shot_subgroup",
        split=held_out,
        labels=("subgroup",),
        min_items=10,
        count_splits=("train", held_out),
        **prompts,
      ),
    ),
    ("health", 0, dict(split=held_out)),
  )
  if routing:
    c.evaluators += (("routing", every, dict(split=held_out)),)


def set_styles(c: ConfigDict) -> None:
  """Every concept, drawn by Twemoji and by Noto; tested in OpenMoji's drawings.

  Nothing is held out but the style, so what is asked is to see past it.
  """
  c.data.split = "all"
  c.data.options.update(dict(styles=("twemoji", "noto"), skin_tones=False))
  # Styles differ in lines, colours and margins: vary these, whatever styles there are.
  decode, (crop, _), _, *rest = c.data.transforms
  c.data.transforms = (
    decode,
    (crop, dict(scale=(0.7, 1.8), ratio=(0.88, 1.14), rotate=10.0)),
    ("outline", {}),
    (
      "color",
      dict(brightness=0.25, contrast=0.25, saturation=0.5, hue=0.04, grayscale=0.25),
    ),
    *rest,
  )
  every = c.checkpoint.every
  unseen, seen = dict(styles=("openmoji",)), dict(styles=("twemoji",))
  c.evaluators = (
    ("retrieval", every, dict(split="all", source=unseen, without=(("flag", 1),))),
    ("retrieval", 0, dict(name="retrieval_seen", split="all", source=seen)),
    ("routing", every, dict(split="all", source=unseen)),
  )


def run_local(c: ConfigDict) -> None:
  """Shrinks everything to a run of seconds: for tests and for trying things out."""
  c.model.embed_dim = 16
  c.model.trunk.update(dict(width=16, depth=2, heads=2, mlp=32))
  c.model.modalities.image.update(
    dict(size=(16, 16, 3), patch=(8, 8), gradients=(2, 4), colors=(2, 2))
  )
  c.model.moe.update(dict(experts=4, group=16))
  c.model.moe.min_experts = ConfigDict(dict(text=1.5, image=2.0))
  c.model.moe.warn.effective_experts.update(dict(text=1.2, image=1.2))
  c.batch_size, c.total_steps, c.log_every = 32, 8, 2
  c.optimizer.warmup = 2
  c.checkpoint.every = 4


def finish(c: ConfigDict, args: ConfigDict, name: str, routing: bool = False):
  """Sets what comes last in each recipe; returns the config.

  Raises:
    ValueError: `styles` with `tune`.
  """
  if args.styles and args.tune:
    raise ValueError(
      "recipe arguments 'styles' and 'tune' do not go together: styles trains on every "
      "concept, so there is no family to hold out for tuning"
    )
  c.name = name
  set_training(c)
  if args.styles:  # twice the drawings, and none may be learned by heart
    c.total_steps = 1600
    c.optimizer.warmup = 150
    c.checkpoint.every = 400
  set_data(c, args.seed)
  if args.runlocal:
    run_local(c)
  held_out = "test"
  if args.tune:
    held_out = "validation"
    c.name += "_tune"  # its figures are not to be mixed with those of the test split
    c.data.options.validation_share = 0.12
    c.checkpoint.best = "retrieval/i2t_r10"
  set_evaluators(c, every=c.checkpoint.every, routing=routing, held_out=held_out)
  if args.styles:
    set_styles(c)
    c.name += "_styles"
  return c


def method(arg: str, name: str, *losses: tuple[str, float, dict]) -> ConfigDict:
  """Returns what most recipes of configs/methods are: clip_emoji with other losses.

  Args:
    arg: what follows the colon on the command line.
    name: of the run.
    *losses: (a file of model/losses/, weight, options); none: CLIP's.
  """
  args = args_lib.parse(arg, **METHOD_ARGS)
  args.styles = False
  c = base.get_config()
  set_model(c)
  c = finish(c, args, name)
  if losses:
    c.objective.options.losses = losses
  return c


def replace(c: ConfigDict, name: str, *transforms: tuple[str, dict]) -> None:
  """Puts training transforms in the place of the one that is called `name`.

  Raises:
    ValueError: none is.
  """
  known = [old for old, _ in c.data.transforms]
  if name not in known:
    raise ValueError(f"no {name!r} among config.data.transforms {known}")
  c.data.transforms = tuple(
    new
    for old in c.data.transforms
    for new in (transforms if old[0] == name else (old,))
  )


def add_languages(c: ConfigDict, *languages: str) -> tuple[str, ...]:
  """Adds the names in other languages, each a modality with a tower of its own.

  One tokenizer serves all, and every example has all of its texts at once.

  Returns:
    The modalities, "text_de" for "de", ....
  """
  c.data.options.languages = ("en", *languages)
  replace(c, "sample_caption", ("sample_caption", dict(main=1.0, share=1.0)))
  held_out = c.evaluators[0][2]["split"]
  for language in languages:
    name, key = f"text_{language}", f"caption_{language}"
    c.model.modalities[name] = ConfigDict(c.model.modalities.text)
    pick = dict(language=language, key=key)
    ids = dict(modality=name, key=key)
    c.data.transforms += (
      ("sample_caption", pick | dict(main=1.0, share=1.0)),
      ("tokenize", ids | dict(nbest=16)),
    )
    c.data.eval_transforms += (
      ("sample_caption", pick | dict(train=False)),
      ("tokenize", ids),
    )
    pairs = (("image", name),)
    options = dict(name=f"retrieval_{language}", split=held_out, pairs=pairs)
    c.evaluators += (("retrieval", 0, options),)
  return tuple(f"text_{language}" for language in languages)
