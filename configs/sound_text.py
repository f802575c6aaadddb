"""Sounds and captions, each with a trunk of its own: CLAP's setting (arXiv 2206.04769).

python train.py --config configs/sound_text.py --workdir runs/sound
Examples hold `captions` and `audio_bytes` (ogg, wav or flac). Ten seconds at 16 kHz, 64
mel bands made on the host, patches of 16 x 16 as in AST (arXiv 2104.01778), which
overlap there; SpecAugment on the device. mean and std are of log-mels of speech and
household sounds at about -20 dB: your own data's may be better. Not run at scale by us:
no figure is claimed.
"""

from configs import any_text, base
from configs import args as args_lib

PAIRS = (("audio", "text"),)


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **any_text.ARGS)
  c = base.get_config()
  c.name = "sound_text"
  c.total_steps, c.batch_size = 50_000, 1024
  audio = base.modality(size=(1024, 64, 1), patch=(16, 16))
  c.model.modalities = dict(audio=audio, text=any_text.text())
  masked: tuple = ("audio", ("audio",), (("spec_augment", {}),))
  c.objective.options.update(
    dict(losses=(("infonce", 1.0, dict(pairs=PAIRS)),), views=(masked,))
  )
  rate, hop = 16_000, 160
  more = dict(n_fft=512)
  if args.runlocal:
    rate, hop = any_text.TINY_RATE, any_text.TINY_HOP
    more = dict(n_fft=256)
  frames = 32 if args.runlocal else 1024
  decode = dict(rate=rate, seconds=frames * hop / rate)
  log_mel = ("log_mel", dict(rate=rate, hop=hop, mean=-13.0, std=4.0, **more))
  return any_text.finish(
    c,
    args,
    PAIRS,
    train=(("decode_audio", decode), log_mel),
    evaluate=(("decode_audio", dict(crop="first", **decode)), log_mel),
    tiny=dict(audio=dict(size=(32, 16, 1), patch=(4, 16))),
  )
