"""Clips and captions, each with a trunk of its own: CLIP over tubelets.

python train.py --config configs/video_text.py --workdir runs/video
Examples hold `captions` and `video_bytes`: a GIF, WebP or APNG, or a .npy of frames
uint8[t, h, w, 3]. Tubelets as in ViViT (arXiv 2103.15691, section 3.2), one space-time
trunk (its model 1) from scratch. Not run at scale by us: no figure is claimed.
"""

from configs import any_text, base
from configs import args as args_lib

PAIRS = (("video", "text"),)


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **any_text.ARGS)
  c = base.get_config()
  c.name = "video_text"
  c.total_steps, c.batch_size = 50_000, 1024
  video = base.modality(size=(8, 112, 112, 3), patch=(2, 16, 16))
  c.model.modalities = dict(video=video, text=any_text.text())
  c.objective.options.losses = (("infonce", 1.0, dict(pairs=PAIRS)),)
  clip = dict(stride=2, scale=(0.5, 1.0), flip=0.5)
  return any_text.finish(
    c,
    args,
    PAIRS,
    train=(("decode_video", clip),),
    evaluate=(("decode_video", dict(clip="uniform")),),
    tiny=dict(video=dict(size=(4, 16, 16, 3), patch=(2, 8, 8))),
  )
