"""Pictures, captions and spoken captions in one LIMoE: Tux Paint's stamps.

for split in train test; do python -m tools.prepare_data --recipe tuxpaint \
  --option audio=fr --root ROOT --split $split --out prepared; done
python train.py --config configs/speech_tuxpaint.py --workdir runs/speech

French, of which there are most clips; another language by `audio=es` and a recipe
argument `language=es`. Examples hold `image_bytes`, `captions` {language: texts} and
the caption as spoken, `audio_bytes` (another key by `speech=...`). Five seconds; the
device makes the log-mel spectrogram. `loss=symile` contrasts all three at once (arXiv
2411.01053) instead of pair by pair.
"""

from ml_collections import ConfigDict

from configs import any_text, base
from configs import args as args_lib

PAIRS = (("image", "text"), ("audio", "text"), ("image", "audio"))
ARGS = any_text.ARGS | dict(speech="audio_bytes", language="fr", loss="pairs")
LOSSES = dict(
  pairs=("infonce", 1.0, dict(pairs=PAIRS)),
  symile=("symile", 1.0, dict(modalities=("image", "text", "audio"))),
)


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **ARGS)
  if args.loss not in LOSSES:
    raise ValueError(f"loss={args.loss!r} is none of {sorted(LOSSES)}")
  c = base.get_config()
  c.name = "speech_tuxpaint"
  c.total_steps, c.batch_size = 3000, 128
  c.model.embed_dim = 128
  c.model.trunk.update(dict(width=192, depth=6, heads=4, mlp=512))
  # Mean and deviation of the log-mels of the French clips.
  log_mel = dict(rate=16_000, n_fft=400, hop=160, mean=-19.6, std=3.2)
  size, tiny = (512, 64, 1), {}
  if args.runlocal:
    log_mel |= dict(rate=any_text.TINY_RATE, hop=any_text.TINY_HOP, n_fft=256)
    size = (32, 16, 1)
    tiny = dict(image=dict(size=(24, 24, 3)), audio=dict(patch=(4, 16)))
  c.model.modalities = dict(
    image=base.modality(size=(64, 64, 3), patch=(8, 8)),
    text=any_text.text(vocab=4096, length=32),
    audio=base.modality(size=size, patch=(16, 16), log_mel=ConfigDict(log_mel)),
  )
  _set_moe(c)
  # Evaluation sees no views: there the stem makes the same spectrogram.
  seen: tuple = ("log_mel", dict(mels=size[1], **log_mel)), ("spec_augment", {})
  options = dict(losses=(LOSSES[args.loss],), views=(("audio", ("audio",), seen),))
  c.objective.options.update(options)
  normalize: tuple[str, dict] = ("normalize", {})
  speech = dict(key="audio", source=args.speech)
  if args.runlocal:
    speech["source"] = "audio_bytes"
  c = any_text.finish(
    c,
    args,
    PAIRS,
    train=(
      ("decode_image", {}),
      ("random_resized_crop", dict(scale=(0.6, 1.2))),
      ("flip", {}),
      normalize,
      ("decode_audio", speech),
    ),
    evaluate=(
      ("decode_image", {}),
      ("resize", {}),
      normalize,
      ("decode_audio", dict(crop="first", **speech)),
    ),
    tiny=tiny,
    captions=(("language", args.language), ("share", 1.0)),
  )
  c.optimizer.warmup = 5 if args.runlocal else 200
  if args.runlocal:
    c.model.trunk.depth = 2  # a dense block and a sparse one
  return c


def _set_moe(c: ConfigDict) -> None:
  c.model.shared_trunk = True
  c.model.moe.update(dict(every=2, experts=8, group=8))
  least = dict(text=2.0, image=3.0, audio=3.0)
  c.model.moe.min_experts = ConfigDict(least)
  c.model.moe.losses.global_entropy = ConfigDict({m: 1.0 for m in least})
  c.model.moe.warn = ConfigDict(
    dict(
      served={m: 0.5 for m in least},
      effective_experts={m: n / 2 for m, n in least.items()},
    )
  )
