"""A workdir as a run leaves it, made up."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from training import environment

N = 24
EXPERTS = 4
LAYERS = ("layer01", "layer03")
LIMITS = {"text": 3.0, "image": 2.0}
WARN = {"served": {"text": 0.95}, "effective_experts": {"text": 1.5, "image": 1.0}}


def config():
  return {
    "name": "limoe_synthetic",
    "batch_size": 8,
    "total_steps": 200,
    "data": {
      "source": "made_up",
      "split": "train",
      "eval_transforms": [["decode_image", {}], ["resize", {}]],
    },
    "model": {
      "moe": {"experts": EXPERTS, "k": 1, "min_experts": LIMITS, "warn": WARN},
      "modalities": {"image": {"size": [16, 16, 3], "patch": [8, 4]}},
    },
    "evaluators": [
      ["retrieval", 100, {"without": [["flag", 1]]}],
      ["retrieval", 0, {"name": "retrieval_train", "split": "train"}],
    ],
  }


def training_row(step, rng):
  def noise():
    return float(rng.normal(scale=0.02))

  decay = np.exp(-step / 80)
  row = {
    "step": step,
    "loss": 5 * decay + 0.6 + noise(),
    "losses/objective": 5 * decay + 0.5 + noise(),
    "losses/moe_load": 0.02 * decay + 0.01,
    "losses/moe_z": 0.01 + 0.001 * noise(),
    "losses/moe_local_entropy_text": 0.03 * decay,
    "losses/moe_global_entropy_image": -0.02,
    "grad_norm": 3 * decay + 0.3 + abs(noise()),
    "lr": 1e-3 * min(step / 40, 1.0),
    "infonce/temperature": 0.07 - 1e-4 * step,
    "examples_per_s": 300 + 100 * noise(),
    "data_wait": 0.05 + abs(noise()),
  }
  for i, layer in enumerate(LAYERS):
    row[f"metrics/moe/{layer}/dead_experts"] = float(step < 40 * i)
    row[f"metrics/moe/{layer}/router_logit_scale"] = 2.0 + i + 0.01 * step + noise()
    for j, m in enumerate(LIMITS):
      head = f"metrics/moe/{layer}"
      load = rng.dirichlet(np.roll([8.0, 4.0, 1.0, 0.5], i + 2 * j) * (2 - decay))
      row[f"{head}/load/{m}"] = load.tolist()
      row[f"{head}/effective_experts/{m}"] = 4 - 1.5 * decay + noise() - 0.3 * j
      row[f"{head}/token_entropy/{m}"] = 1.0 + 0.3 * decay - 0.2 * j
      row[f"{head}/served/{m}"] = 1.0 - 0.1 * decay - 0.01 * abs(noise())
  return row


def evaluation_row(step):
  r = 1 - np.exp(-step / 150)
  row = {"step": step}
  for name, share in (("retrieval", 0.4), ("retrieval_train", 1.3)):
    for sub, more in (("", 1.0), ("without_flag/", 0.9)):
      if name == "retrieval_train" and sub:
        continue
      row[f"eval/{name}/{sub}n"] = N
      for way in ("i2t", "t2i"):
        for k, f in ((1, 0.4), (5, 0.8), (10, 1.0)):
          row[f"eval/{name}/{sub}{way}_r{k}"] = min(r * share * more * f, 1.0)
          row[f"eval/{name}/{sub}{way}_chance_r{k}"] = k / N
        row[f"eval/{name}/{sub}{way}_median_rank"] = 7.0
  values = dict(top1=0.6, top5=0.9, mean_per_class=0.5, chance=0.33, majority=0.5)
  values |= dict(classes=3, n=N)
  row |= {f"eval/zero_shot/group_{k}": v for k, v in values.items()}
  row["eval/health/alignment/image_text"] = 0.8
  row["eval/health/uniformity/image"] = -2.5
  return row


def write(workdir, seed=0):
  """Writes a whole run of 200 steps into a folder."""
  rng = np.random.default_rng(seed)
  workdir = pathlib.Path(workdir)
  artifacts = workdir / "artifacts"
  artifacts.mkdir(parents=True)
  (workdir / "config.json").write_text(json.dumps(config()))
  environment.write(str(workdir))
  rows = [training_row(step, rng) for step in range(2, 202, 2)]
  rows += [evaluation_row(step) for step in (100, 200)]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (workdir / "metrics.jsonl").write_text(text)
  ids = np.arange(N)
  top = np.stack([np.roll(ids, -i)[:5] for i in range(N)])
  top[::2] = (top[::2] + 3) % N
  found = {"index": ids, "id": ids}
  for way in ("i2t", "t2i"):
    found |= {f"{way}_top": top, f"{way}_correct": top == ids[:, None]}
  np.savez(artifacts / "retrieval.npz", kind="retrieval", split="test", **found)
  np.savez(
    artifacts / "zero_shot_group.npz",
    kind="zero_shot",
    label="group",
    classes=np.asarray(["animals & nature", "food & drink", "flags"]),
    accuracy=np.asarray([0.7, 0.25, 1.0]),
    support=np.asarray([10, 8, 6]),
    confusion=np.eye(3),
  )
  load = rng.dirichlet(np.ones(EXPERTS), size=(2, 2))
  np.savez(
    artifacts / "routing.npz",
    kind="routing",
    split="test",
    layers=np.asarray(LAYERS),
    modalities=np.asarray(["image", "text"]),
    load=load,
    **favourites(),
  )
  return workdir


def favourites(keep=3):
  """Returns what the routing evaluator says of each expert; the last likes little."""
  index = np.arange(EXPERTS * keep).reshape(EXPERTS, keep)
  index[-1, 1:] = -1
  position = np.where(index < 0, -1, index % 8)
  out = {}
  for i, layer in enumerate(LAYERS):
    gate = np.where(index < 0, 0.0, 0.9)
    patches = {"index": index, "position": position, "gate": gate}
    out |= {f"patches/{layer}/image/{k}": v for k, v in patches.items()}
    words = {"id": np.where(index < 0, -1, 300 + index + 100 * i)}
    words |= {"count": 5 + index, "lift": 1.5 + index}
    out |= {f"words/{layer}/text/{k}": v for k, v in words.items()}
  return out


class Source:
  """Coloured squares with names."""

  def __len__(self):
    return N

  def __getitem__(self, i):
    picture = Image.new("RGB", (16, 16), (i * 10, 255 - i * 10, 128))
    data = io.BytesIO()
    picture.save(data, "PNG")
    names = (f"square number {i} with <tags> & $dollars$",)
    return {"image_bytes": data.getvalue(), "captions": {"de": ("x",), "en": names}}
