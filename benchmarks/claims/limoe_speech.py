"""LIMoE with a third modality (arXiv 2206.02770): stamps, captions, spoken captions.

python -m benchmarks.claims limoe_speech

Tux Paint's stamps in French, of which 925 have a clip. They come in a Debian package,
not by pip: CONCORD_PACKAGES=ROOT says where it was unpacked, / if unset
(docs/datasets.md#tuxpaint). The recipe is configs/speech_tuxpaint.py, smaller, as
benchmarks/claims/limoe.py has the emoji's; stamps are decoded once, and then kept.
"""

from collections.abc import Mapping
import functools
import json
import os
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np

from benchmarks.claims.shared import plot, sparse
from benchmarks.claims.shared.claim import Claim, Measured, flat
from benchmarks.claims.shared.verdict import Rule, Statement
from configs import speech_tuxpaint
from evaluators import gallery
from input_pipeline.datasets import tuxpaint
from input_pipeline.drop import Drop
from input_pipeline.sources import in_memory
from input_pipeline.transforms import decode_audio, decode_image, log_mel
from tools import report_plots as plots
from training import metrics as metrics_lib

ARMS = {
  "dense": "the twin of equal active size: no experts",
  "classic": "experts with importance, load and z losses",
  "full": "classic, local entropy of text, global entropy of all three, and batch "
  "priority: LIMoE",
  "two": "full without the spoken captions: pictures and captions alone",
}
MODALITIES = ("audio", "image", "text")
PAIRS = {"it": ("image", "text"), "at": ("audio", "text"), "ia": ("image", "audio")}
STORE = "tuxpaint_fr_"  # and the split: where the stamps are kept in memory
_ARRAYS = ("image", "audio", "audio_mask")


def settings(arm: str, seed: int) -> dict[str, Any]:
  """Returns how the stamps are decoded and split, and the recipe that learns them.

  Raises:
    ValueError: no such arm.
  """
  if arm not in ARMS:
    raise ValueError(f"no arm {arm!r}; there are {', '.join(ARMS)}")
  c = speech_tuxpaint.get_config(f"seed={seed}")
  # The recipe's spectrogram, but with the mean and deviation of these clips.
  sound = c.model.modalities.audio.log_mel.to_dict() | dict(mean=-19.6, std=3.2)
  stamps = dict(seed=seed, side=48, frames=256, log_mel=sound | dict(mels=64))
  _shrink(c)
  moe = c.model.moe
  if arm == "dense":
    moe.every = 0
  else:
    c.evaluators += (("routing", 0, dict(split="test", favourites=0)),)
  limoe = float(arm in ("full", "two"))
  moe.priority = bool(limoe)
  moe.losses.local_entropy.text = limoe
  moe.losses.global_entropy.update({m: limoe for m in MODALITIES})
  if arm == "two":
    del c.model.modalities.audio
    del moe.losses.global_entropy.audio
    moe.capacity = 0.92  # of 48 places, 44 hold a real token
    pairs = (PAIRS["it"],)
    c.objective.options.update(losses=(("infonce", 1.0, dict(pairs=pairs)),), views=())
    (name, every, options), *rest = c.evaluators
    c.evaluators = ((name, every, options | dict(pairs=pairs)), *rest)
  return {"stamps": stamps, "run": c}


def _shrink(c: ConfigDict) -> None:
  """Makes the recipe small, and has it read stamps that are decoded already."""
  c.model.dtype = "float32"
  c.mesh.update(dict(data=-1, fsdp=1))
  c.model.embed_dim = 64
  c.model.trunk.update(dict(width=64, depth=2, heads=2, mlp=256))
  modalities, moe = c.model.modalities, c.model.moe
  modalities.image.update(dict(size=(24, 24, 3), patch=(4, 4)))
  modalities.text.update(dict(vocab=1024, length=12))
  modalities.audio.update(dict(size=(256, 64, 1), patch=(8, 64)))
  modalities.audio.log_mel = ConfigDict()  # made already
  # The recipe's thresholds, 2, 3 and 3 of 8 experts, of four times as many. Slots for
  # the mean load of real tokens: of 80 places, padding fills 20.
  moe.update(dict(experts=32, group=16, capacity=0.75))
  moe.min_experts.update(dict(text=8.0, image=12.0, audio=12.0))
  c.batch_size, c.total_steps, c.log_every = 64, 160, 2
  c.ema, c.checkpoint.every = 0.98, 0
  c.optimizer.update(dict(lr=2e-3, warmup=50, weight_decay=0.1))
  c.optimizer.lr_scale = ((r"/router/", 10.0),)  # as in limoe.py, which says why
  c.objective.options.views = (("audio", ("audio",), (("spec_augment", {}),)),)
  c.data.source = "in_memory"
  c.data.options = ConfigDict(dict(name=STORE + "{split}"))
  for key in ("transforms", "eval_transforms"):
    left = (t for t in c.data[key] if t[0] not in ("decode_image", "decode_audio"))
    c.data[key] = tuple(left)


def measure(settings: Mapping[str, Any], workdir: str) -> Measured:
  """Trains an arm and reads what the loop wrote down."""
  config = settings["run"]
  for split in ("train", "test"):
    columns = stamps(split, json.dumps(settings["stamps"]))
    in_memory.put(STORE + split, **columns)
  run = sparse.train(config, workdir)
  figures = {"finite": run.finite, "flops_per_step": metrics_lib.model_flops(config)}
  figures["loss"] = run.loss
  known = [m for m in MODALITIES if m in config.model.modalities]
  names = [n for n, pair in PAIRS.items() if set(pair) <= set(known)]
  for name in names:
    found = run.retrieval(PAIRS[name], "r10")
    figures["chance"] = run.retrieval(PAIRS[name], "chance_r10")
    figures |= {f"recall_{name}": found, f"over_{name}": found - figures["chance"]}
  figures["recall"] = float(np.mean([figures[f"recall_{n}"] for n in names]))
  if "at" in names:
    figures["length"] = by_length(columns)
    figures["over_length"] = figures["recall_at"] - figures["length"]
  arrays: dict[str, Any] = {"step": [r["step"] for r in run.steps[:: sparse.EVERY]]}
  if config.model.moe.every:
    figures |= sparse.routing(run.steps, known)
    arrays |= sparse.arrays(run, known)
    others = [figures[f"served_{m}"] for m in known if m != "text"]
    figures["text_behind"] = float(np.mean(others)) - figures["served_text"]
  return Measured(figures, arrays)


def by_length(columns: Mapping[str, Any]) -> float:
  """Returns the R@10 of clips and captions by their order of length alone.

  The mean of both directions, over the columns of `stamps`.
  """
  letters = [len(caption["fr"][0]) for caption in columns["captions"]]
  ids, z = np.asarray(columns["id"]), {}
  for name, long in (("a", columns["audio_mask"].sum(axis=1)), ("t", letters)):
    # On a quarter of a circle cosines fall with the distance between two places.
    angle = np.argsort(np.argsort(long, kind="stable")) * (np.pi / 2 / len(ids))
    z[name] = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
  ways = (gallery.search(z[a], z[b], ids, ids) for a, b in (("a", "t"), ("t", "a")))
  return float(np.mean([np.mean(way.rank < 10) for way in ways]))


@functools.lru_cache(maxsize=2)  # both splits of a seed: its arms follow each other
def stamps(split: str, spec: str) -> dict[str, Any]:
  """Returns the columns of a split, as `in_memory.put` takes them.

  Args:
    split: "train" | "test".
    spec: "stamps" of the settings, as JSON.

  Returns:
    image uint8[n, side, side, 3]; audio f32[n, frames, mels], of the beginnings of the
    clips, and audio_mask bool[n, frames]; captions; and id.

  Raises:
    FileNotFoundError: the package is not there; says how to get it.
    ValueError: a stamp that cannot be read, such as an SVG without resvg-py.
  """
  told = json.loads(spec)
  root = os.environ.get("CONCORD_PACKAGES", "")
  try:
    source = tuxpaint.Source(root=root, audio="fr", split=split, seed=told["seed"])
  except FileNotFoundError as e:
    raise FileNotFoundError(f"{e}; or the variable CONCORD_PACKAGES") from e
  heard = log_mel.Transform(**told["log_mel"])
  seconds = told["frames"] * heard.hop / heard.rate
  made = (
    decode_image.Transform(size=(told["side"],) * 2),
    decode_audio.Transform(rate=heard.rate, seconds=seconds, crop="first"),
    heard,
  )
  rows, rng = [], np.random.default_rng(0)  # none of the three is random
  for i in range(len(source)):
    try:
      row = source[i]
      for transform in made:
        row = transform(row, rng)
    except Drop as e:
      raise ValueError(f"stamp {i} of {split}: {e.reason}; the claim reads all") from e
    rows.append(row)
  columns = {k: np.stack([row[k] for row in rows]) for k in _ARRAYS}
  # Of all languages, the one that is spoken: the tokenizer is trained on what is here.
  french = [{"fr": row["captions"]["fr"]} for row in rows]
  return columns | {"captions": french, "id": [row["id"] for row in rows]}


@plots.styled
def draw(result: Mapping[str, Any]) -> Figure:
  """Returns the plot: retrieval of each pair, curves of the router, matrices."""
  fig, axes = plots.figure(2, 4, (19, 7.5))
  colours = dict(zip(result["arms"], plots.PALETTE))
  chance = float(np.mean([r["figures"]["chance"] for r in result["runs"]]))
  for ax, (name, (a, b)) in zip(axes[0], PAIRS.items()):
    plot.points(ax, result, f"recall_{name}", colours)
    ax.axhline(chance, color=plots.MUTED, ls=":", lw=1.2)
    ax.set_title(f"held-out recall at 10, {a} and {b}")
  known = [r["figures"]["length"] for r in result["runs"] if "length" in r["figures"]]
  axes[0, 1].axhline(np.mean(known), color=plots.INK, ls="--", lw=1, label="by length")
  axes[0, 1].legend()
  sparse.curves(axes[0, 3], result, "served_text", colours)
  axes[0, 3].set_title("share of text tokens served")
  axes[0, 3].legend()
  least = settings("full", 0)["run"].model.moe.min_experts
  for ax, m in zip(axes[1], ("text", "audio")):
    sparse.curves(ax, result, f"effective_experts_{m}", colours)
    ax.axhline(float(least[m]), color=plots.INK, ls=":", lw=1)
    ax.set_title(f"effective experts of {m}, exp H")
  for ax, arm in zip(axes[1, 2:], ("classic", "full")):
    sparse.matrix(ax, result, arm, MODALITIES)
  fig.suptitle(f"{result['title']}: {len(result['seeds'])} seeds", x=0.01, ha="left")
  return fig


CHOICE = {
  "seed": 0,
  "aim": "the setting of [LIMoE on emoji](limoe.md), with a third modality: its trunk, "
  "experts, steps, batch, learning rates and weights of the losses. Thresholds are "
  "those of configs/speech_tuxpaint.py, of 4 times as many experts. No search for "
  "retrieval or for LIMoE",
  "pilots": [
    "`full`, 160 steps, to see what a run costs; it was seen before the rules were "
    "written: R@10 .26, .23 and .17, chance .07; text on exp H 11 experts, .68 of it "
    "served; experts of their own 2 of text, 7 of images, 3 of speech. No other arm "
    "and no other setting was tried before",
    "the other arms in the same setting, after the rules were written and without a "
    "change of either: R@10 over the pairs .25 `dense`, .22 `classic`, .22 `full`; of "
    "pictures and captions .25 `two`. `classic` did not collapse: text on exp H 27 "
    "experts, .85 of it served. Order of length alone gives .20 of speech and captions",
    "written after the runs, what limits them: classic balancing does not "
    "collapse in this setting, so that there was nothing to cure, and in `full` "
    "pictures and speech stay at twice their thresholds without being held there: of "
    "the three floors only text's was near. Order of length alone matches speech and "
    "captions about as well as any arm does: their R@10 says little of what is heard",
  ],
}

_SERVED, _EXPERTS = "served_text", "effective_experts_text"
STATEMENTS = (
  Statement(
    name="three pairs",
    text="One trunk of experts finds each pair of the three modalities better than "
    "chance does",
    rules=tuple(Rule(metric=f"over_{n}", arm="full", at_least=0.0) for n in PAIRS),
  ),
  Statement(
    name="more than length",
    text="It matches speech and captions by more than their lengths",
    rules=(Rule(metric="over_length", arm="full", at_least=0.0),),
  ),
  Statement(
    name="collapse",
    text="With classic balancing alone the shortest modality, text, ends on less than "
    "half of the experts that its threshold asks for, and loses half of its tokens",
    rules=(
      Rule(metric=_EXPERTS, arm="classic", at_most=4.0),
      Rule(metric=_SERVED, arm="classic", at_most=0.5),
    ),
  ),
  Statement(
    name="the shortest loses most",
    text="With classic balancing alone a smaller share of text's tokens is served than "
    "of the others'",
    rules=(Rule(metric="text_behind", arm="classic", at_least=0.0),),
  ),
  Statement(
    name="cure",
    text="LIMoE keeps text on more experts, and more of its tokens served",
    rules=(
      Rule(metric=_EXPERTS, arm="full", minus="classic", at_least=1.0),
      Rule(metric=_SERVED, arm="full", minus="classic", at_least=0.1),
    ),
  ),
  Statement(
    name="floors",
    text="Thresholds act as floors of the effective experts of all three (within 5 %)",
    rules=tuple(
      Rule(metric=f"effective_experts_{m}", arm="full", at_least=0.95 * least)
      for m, least in (("audio", 12), ("image", 12), ("text", 8))
    ),
  ),
  Statement(
    name="specialists",
    text="Experts of one modality emerge: one at least of each of the three, and more "
    "than at the start",
    rules=(
      *(Rule(metric=f"own_{m}", arm="full", at_least=1) for m in MODALITIES),
      Rule(metric="own_more", arm="full", at_least=1),
    ),
  ),
  Statement(
    name="gain over dense",
    text="LIMoE finds more than its dense twin of equal compute, over the three pairs",
    rules=(Rule(metric="recall", arm="full", minus="dense", at_least=0.0),),
  ),
  Statement(
    name="gain over classic",
    text="LIMoE finds more than the same experts with classic balancing alone",
    rules=(Rule(metric="recall", arm="full", minus="classic", at_least=0.0),),
  ),
  Statement(
    name="no price",
    text="Speech in the same trunk costs pictures and captions at most .02 of R@10",
    rules=(Rule(metric="recall_it", arm="full", minus="two", at_least=-0.02),),
  ),
)

_AUDIO = flat(settings("full", 0)["run"].model.modalities.audio)

CLAIM = Claim(
  title="LIMoE on stamps with speech",
  source="arXiv 2206.02770",
  about=(
    "One trunk of two blocks reads Tux Paint's stamps (36 patches), their French "
    "captions (8 tokens on average) and the same captions as spoken (16 patches on "
    "average of log-mels, of the first 2.56 seconds), all three pairs contrasted; the "
    "second block has 32 experts, k = 1, and slots for the mean load. Of 925 stamps "
    "four fifths train; the others are of other families. 160 steps of 64 stamps, the "
    "router at 10 times the others' learning rate. All arms but `two`, which reads "
    "fewer tokens, do the same active arithmetic, but for the router's matrix. The "
    "stamps are (c) 2002-2022 Bill Kendrick and contributors, GPL-2; they come in the "
    "Debian package tuxpaint-stamps-default "
    "([how to get it](../datasets.md#tuxpaint)): CONCORD_PACKAGES=ROOT says where it "
    "was unpacked."
  ),
  legend=(
    "R@10: recall over held-out stamps, mean of both directions and, where no pair is "
    "named, of the pairs; a stamp of the same caption is right as well. Chance is that "
    "of a random order; length, of who matches clips and captions by their order of "
    "length. Of the router, means over the last 40 steps: the share of a modality's "
    "tokens that is served; exp H, of the mean gate; token H, of a token's gate, in "
    "nats; own, experts of whose load nine tenths are one modality's, loads being per "
    "token of a modality."
  ),
  arms=ARMS,
  seeds=(1, 2, 3, 4, 5),  # 0 was seen: see CHOICE
  settings=settings,
  varies=(
    "run.model.moe.every",
    "run.model.moe.priority",
    "run.model.moe.capacity",
    "run.model.moe.losses.local_entropy.text",
    *(f"run.model.moe.losses.global_entropy.{m}" for m in MODALITIES),
    "run.objective.options.losses",
    "run.objective.options.views",
    "run.evaluators",
    # Of `two`, which has no such modality.
    *(f"run.model.modalities.audio.{key}" for key in _AUDIO),
  ),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("recall", "R@10"),
    *((f"recall_{n}", f"R@10 {a}-{b}") for n, (a, b) in PAIRS.items()),
    ("chance", "chance"),
    ("length", "length"),
    ("loss", "training loss"),
    *((f"served_{m}", f"{m} served") for m in MODALITIES),
    *((f"effective_experts_{m}", f"exp H {m}") for m in MODALITIES),
    *((f"token_entropy_{m}", f"token H {m}") for m in MODALITIES),
    *((f"own_{m}", f"{m}'s own") for m in MODALITIES),
  ),
  draw=draw,
  choice=CHOICE,
)
