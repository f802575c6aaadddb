"""LIMoE (arXiv 2206.02770): what the entropy losses are for, on the emoji set.

python -m benchmarks.claims limoe

One trunk for both modalities, 36 image patches against some 7 words' pieces, 32 experts
in its last block, and slots for the mean load only. The recipe is
configs/limoe_emoji.py, run by the training loop as it is, smaller, and without the wide
paths past the trunk, which would learn most of the matching without it.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np

from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from configs import limoe_emoji
from tools import report_plots as plots
from training import loop
from training import metrics as metrics_lib

# A ladder: each arm adds to the one named in it. All sparse ones but the last give
# slots in the array's order, as V-MoE trains.
ARMS = {
  "dense": "the twin of equal active size: no experts",
  "classic": "experts with importance, load and z losses",
  "local": "classic, and local entropy of text",
  "global": "classic, and global entropy of both modalities",
  "both": "classic, and both entropies: LIMoE without batch priority",
  "full": "both, and batch priority: LIMoE",
}
MODALITIES = ("image", "text")
TAIL = 20  # logged steps at the end over which figures of training are averaged
HEAD = 3  # the same at the start
WINDOW = 10  # logged steps before, whose median a spike is measured against
SPIKE = 2.0  # times that median
DEAD = 0.01  # of the mean load
OWN = 0.9  # share of an expert's load that makes it one modality's own
EVERY = 4  # logged steps between the points of the committed curves


def settings(arm: str, seed: int) -> ConfigDict:
  """Returns the recipe of an arm; arms differ in `config.model.moe` alone.

  Raises:
    ValueError: no such arm.
  """
  if arm not in ARMS:
    raise ValueError(f"no arm {arm!r}; there are {', '.join(ARMS)}")
  c = limoe_emoji.get_config(f"seed={seed}")
  c.model.embed_dim = 64
  c.model.trunk.update(dict(width=64, depth=2, heads=2, mlp=256, dropout=0.0))
  c.model.modalities.image.update(
    dict(size=(24, 24, 3), patch=(4, 4), gradients=(), colors=(), drop_descriptors=0.0)
  )
  c.model.modalities.image.drop_patches = 0.0
  c.model.modalities.text.update(dict(length=8, ngrams=0, drop_ngrams=0.0))
  moe, losses = c.model.moe, c.model.moe.losses
  # The paper's number of experts and its thresholds, as a third re-implementation
  # cites them. Slots for the mean load of all places, of which padding fills a few.
  moe.update(dict(experts=32, group=16, capacity=1.0))
  moe.min_experts.update(dict(text=9.0, image=20.0))
  moe.priority = arm == "full"
  losses.local_entropy.text = float(arm in ("local", "both", "full"))
  both = float(arm in ("global", "both", "full"))
  losses.global_entropy.update({m: both for m in MODALITIES})
  if arm == "dense":
    moe.every = 0
  c.batch_size, c.total_steps, c.log_every = 64, 160, 2
  c.ema, c.checkpoint.every = 0.98, 0
  # A router at the others' pace does not commit itself in so few steps, and then
  # nothing can collapse.
  c.optimizer.lr_scale = ((r"/router/", 10.0),)
  c.evaluators = (("retrieval", 0, dict(split="test")),)
  if arm != "dense":
    c.evaluators += (("routing", 0, dict(split="test", favourites=0)),)
  return c


def measure(config: ConfigDict, workdir: str) -> Measured:
  """Trains an arm and reads what the loop wrote down."""
  finite = 1.0
  try:
    loop.run(config, workdir)
  except loop.NotFinite:
    finite = 0.0
  rows = metrics_lib.read(workdir)
  steps = [r for r in rows if "grad_norm" in r]
  evaluation = next((r for r in rows if "eval/retrieval/i2t_r10" in r), {})
  figures = {"finite": finite, "flops_per_step": metrics_lib.model_flops(config)}
  for k in (1, 10):
    both = [evaluation.get(f"eval/retrieval/{d}_r{k}", 0.0) for d in ("i2t", "t2i")]
    figures[f"recall{k}"] = float(np.mean(both))
  norms = np.array([r["grad_norm"] for r in steps])
  ratio = spikes(norms)[config.optimizer.warmup // config.log_every :]
  figures["spikes"] = float(np.mean(ratio > SPIKE)) if len(ratio) else 0.0
  figures["largest_spike"] = float(ratio.max()) if len(ratio) else 0.0
  figures["loss"] = float(np.mean([r["losses/objective"] for r in steps[-TAIL:]]))
  arrays: dict[str, Any] = {"step": [r["step"] for r in steps[::EVERY]]}
  arrays["grad_norm"] = _rounded(norms[::EVERY])
  if config.model.moe.every:
    figures |= routing(steps)
    for m in MODALITIES:
      for name in ("served", "effective_experts"):
        arrays[f"{name}_{m}"] = _rounded(_series(steps, name, m)[::EVERY])
    arrays["load_start"] = _rounded(_loads(steps[:HEAD]))
    arrays["load"] = _rounded(_loads(steps[-TAIL:]))
    saved = pathlib.Path(workdir) / "artifacts" / "routing.npz"
    if saved.exists():
      arrays["load_held_out"] = _rounded(np.load(saved)["load"])
  return Measured(figures, arrays)


def spikes(norms: np.ndarray) -> np.ndarray:
  """Returns f32[n]: each gradient norm over the median of the WINDOW before it."""
  before = [norms[max(0, i - WINDOW) : i] for i in range(len(norms))]
  return np.array([x / np.median(b) if len(b) else 1.0 for x, b in zip(norms, before)])


def routing(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the figures of the router at the end of training, over sparse layers.

  Served shares and effective experts are of the layer that has the least: means would
  hide a collapse.
  """
  figures = {}
  for m in MODALITIES:
    for name in ("served", "effective_experts", "token_entropy"):
      figures[f"{name}_{m}"] = float(_series(steps[-TAIL:], name, m).mean())
  start, end = own_experts(_loads(steps[:HEAD])), own_experts(_loads(steps[-TAIL:]))
  figures |= {f"own_{m}": end[m] for m in MODALITIES}
  figures["own_more"] = sum(end.values()) - sum(start.values())
  used = used_experts(_loads(steps[-TAIL:]))
  return figures | {f"used_{m}": used[m] for m in MODALITIES}


def used_experts(load: np.ndarray) -> dict[str, float]:
  """Returns modality -> exp H of where its tokens go, in the layer that has the least.

  Unlike effective experts, which are of the mean gate, flat gates do not raise it.

  Args:
    load: f32[layer, modality, e], choices served per token of the modality.
  """
  share = load / np.maximum(load.sum(axis=-1, keepdims=True), 1e-9)
  entropy = -np.sum(share * np.log(np.maximum(share, 1e-9)), axis=-1)
  return {m: float(np.exp(entropy[:, i].min())) for i, m in enumerate(MODALITIES)}


def own_experts(load: np.ndarray) -> dict[str, float]:
  """Returns modality -> how many experts of the last layer are its own.

  An expert is one modality's own if OWN of its load is, where loads are per token of a
  modality, so that the more numerous one has no head start. Dead experts are nobody's.

  Args:
    load: f32[layer, modality, e], choices served per token of the modality.
  """
  last = np.asarray(load)[-1]
  total = last.sum(axis=0)
  live = total > DEAD * total.mean()
  share = last[:, live] / total[live]
  return {m: float((share[i] >= OWN).sum()) for i, m in enumerate(MODALITIES)}


def _series(steps: Sequence[Mapping[str, Any]], name: str, modality: str) -> np.ndarray:
  """Returns f32[steps]: a metric of the sparse layer in which it is least."""
  keys = [k for k in steps[0] if k.startswith("metrics/moe/layer")]
  keys = [k for k in keys if k.endswith(f"/{name}/{modality}")]
  return np.array([min(row[k] for k in keys) for row in steps])


def _loads(steps: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Returns f32[layer, modality, e]: mean load over steps, per token of a modality."""
  layers = sorted(k.split("/")[2] for k in steps[0] if k.endswith("/load/text"))
  rows = [
    [[row[f"metrics/moe/{i}/load/{m}"] for m in MODALITIES] for i in layers]
    for row in steps
  ]
  return np.mean(np.array(rows), axis=0)


def _rounded(values: Any) -> list:
  return np.round(np.asarray(values, np.float64), 4).tolist()


@plots.styled
def draw(result: Mapping[str, Any]) -> Figure:
  """Returns the plot: retrieval, curves of the router and of the gradient, matrices."""
  fig, axes = plots.figure(2, 3, (14, 7.5))
  colours = dict(zip(result["arms"], plots.PALETTE))
  _points(axes[0, 0], result, colours)
  curves = (
    (axes[0, 1], "effective_experts_text", "effective experts of text, exp H"),
    (axes[0, 2], "served_text", "share of text tokens served"),
    (axes[1, 0], "grad_norm", "gradient norm"),
  )
  for ax, name, title in curves:
    for arm, colour in colours.items():
      lines = [r["arrays"] for r in result["runs"] if r["arm"] == arm]
      if all(name in line for line in lines):
        n = min(len(line[name]) for line in lines)
        mean = np.mean([line[name][:n] for line in lines], axis=0)
        ax.plot(lines[0]["step"][:n], mean, color=colour, label=arm)
    ax.set(title=title, xlabel="step")
  axes[0, 1].axhline(_threshold("text"), color=plots.INK, ls=":", lw=1)
  axes[1, 0].set_yscale("log")
  axes[1, 0].legend(ncols=2)
  for ax, arm in ((axes[1, 1], "classic"), (axes[1, 2], "full")):
    _matrix(ax, result, arm)
  fig.suptitle(f"{result['title']}: {len(result['seeds'])} seeds", x=0.01, ha="left")
  return fig


def _threshold(modality: str) -> float:
  return float(settings("full", 0).model.moe.min_experts[modality])


def _points(ax: Axes, result: Mapping[str, Any], colours: Mapping[str, str]) -> None:
  """Draws each seed's held-out recall, and a bar at the arm's mean."""
  for i, (arm, colour) in enumerate(colours.items()):
    values = [r["figures"]["recall10"] for r in result["runs"] if r["arm"] == arm]
    ax.plot([i] * len(values), values, "o", color=colour, ms=5)
    ax.hlines(np.mean(values), i - 0.3, i + 0.3, color=colour)
  ax.set_xticks(range(len(colours)), list(colours), rotation=30, ha="right")
  ax.set_title("held-out recall at 10, both directions")


def _matrix(ax: Axes, result: Mapping[str, Any], arm: str) -> None:
  """Draws which modality each expert of the last layer serves, on held-out pairs."""
  ended = (r for r in result["runs"] if "load_held_out" in r["arrays"])
  run = next((r for r in ended if r["arm"] == arm), None)
  if run is None:  # each of them diverged
    return
  load = np.array(run["arrays"]["load_held_out"])[-1]
  order = np.argsort(load[1] / np.maximum(load.sum(axis=0), 1e-9))
  ax.imshow(load[:, order], aspect="auto", cmap="Blues", vmin=0.0)
  ax.grid(False)
  ax.set_yticks(range(len(MODALITIES)), MODALITIES)
  ax.set_xlabel("experts, from image's to text's")
  ax.set_title(f"{arm}: share of a modality's tokens (seed {run['seed']})")


# What was tried on seed 11 before the rules below were fixed; the last line is what
# all arms share. "Vanilla" is without batch priority.
CHOICE = {
  "seed": 11,
  "aim": "a setting in which classic balancing fails, with the paper's 32 experts, its "
  "loss weight .04 and its thresholds 9 and 20; no search for retrieval or for LIMoE",
  "pilots": [
    "router at the others' learning rate, weight .04, with priority, 250 steps: no "
    "collapse. Classic: text on exp H 30 experts, .97 of it served; full: 22, .88. The "
    "gates stay flat (a token's entropy 3.2 and 2.8 of at most 3.47 nats)",
    "the same in 4 layers of 64 patches: stopped after 60 steps, too slow",
    "router at 10 times that rate, weight .01, vanilla, 200 steps: classic collapses "
    "after 75 steps (text 3.2, .24 served; 21 experts dead), and so does full (3.7, "
    ".19 at step 185): the losses are too weak for either",
    "router at 10 times that rate, weight .04, vanilla, 160 steps: classic collapses "
    "(text 4.8, .24 served at step 112, where the pilot was stopped). Taken; the other "
    "arms were not tried in it",
    "the same with batch 32, seed 0, classic and dense only: no collapse in 160 steps "
    "(text 21, .75 served), recall as low as the twin's; so batch 64, and no seed 0",
    "three seeds, 1 to 3, left seven of the eight claims undecided and held the last: "
    "five more were added, the rules as they were, and all eight seeds run anew",
    "all eight seeds were run twice: first before pictures were resampled by another "
    "library, which changes them by about one level. That run left all three gains in "
    "R@10 inconclusive: over dense .008 [-.001, .017], over classic .005 [-.004, "
    ".014], by priority .007 [-.008, .021]; its other verdicts were those of today's. "
    "So the gains that hold here do so narrowly, and the size of the last two is "
    "uncertain",
  ],
}

STATEMENTS = (
  Statement(
    name="collapse",
    text="With classic balancing alone the router collapses: text ends on less than "
    "half of the experts that LIMoE's threshold asks for, and loses half of its tokens",
    rules=(
      Rule(metric="effective_experts_text", arm="classic", at_most=4.5),
      Rule(metric="served_text", arm="classic", at_most=0.5),
    ),
  ),
  Statement(
    name="instability",
    text="Classic balancing alone makes training unstable: more spikes of the gradient",
    rules=(Rule(metric="spikes", arm="classic", minus="full", at_least=0.01),),
  ),
  Statement(
    name="cure",
    text="The entropy losses keep text on more experts, and more of its tokens served",
    rules=(
      Rule(metric="effective_experts_text", arm="both", minus="classic", at_least=1.0),
      Rule(metric="served_text", arm="both", minus="classic", at_least=0.1),
    ),
  ),
  Statement(
    name="floor",
    text="Thresholds act as floors of the effective experts (within 5 %), and text "
    "falls below its own where local entropy comes without them",
    rules=(
      Rule(metric="effective_experts_text", arm="full", at_least=0.95 * 9),
      Rule(metric="effective_experts_image", arm="full", at_least=0.95 * 20),
      Rule(metric="effective_experts_text", arm="local", at_most=0.95 * 9),
    ),
  ),
  Statement(
    name="specialists",
    text="Experts of one modality emerge: one of text and two of images at least, and "
    "more than at the start",
    rules=(
      Rule(metric="own_text", arm="full", at_least=1),
      Rule(metric="own_image", arm="full", at_least=2),
      Rule(metric="own_more", arm="full", at_least=1),
    ),
  ),
  Statement(
    name="gain over dense",
    text="LIMoE finds more than its dense twin of equal compute",
    rules=(Rule(metric="recall10", arm="full", minus="dense", at_least=0.0),),
  ),
  Statement(
    name="gain over classic",
    text="LIMoE finds more than the same experts with classic balancing alone",
    rules=(Rule(metric="recall10", arm="full", minus="classic", at_least=0.0),),
  ),
  Statement(
    name="priority",
    text="Batch priority helps LIMoE to find more",
    rules=(Rule(metric="recall10", arm="full", minus="both", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="LIMoE on emoji",
  source="arXiv 2206.02770",
  about=(
    "One trunk of two blocks reads drawings (36 patches) and their names (7 tokens on "
    "average); the second block has 32 experts, k = 1, and slots for the mean load. "
    "160 steps of 64 pairs, the router at 10 times the others' learning rate. The "
    "recipe's wide paths past the trunk are off. All arms do the same active "
    "arithmetic, but for the router's matrix."
  ),
  legend=(
    "R@k: recall over held-out families, mean of both directions. Of the router, "
    "means over the last 40 steps: the share of a modality's tokens that is served; "
    "exp H, of the mean gate; used, exp H of where the tokens went; own, experts of "
    "whose load nine tenths are one modality's, loads being per token of a modality. "
    "Spikes: share of the logged steps after warm-up with a gradient norm over twice "
    "the median of those before."
  ),
  arms=ARMS,
  seeds=tuple(range(1, 9)),  # 0 was seen: see CHOICE
  settings=settings,
  varies=(
    "model.moe.every",
    "model.moe.priority",
    "model.moe.losses.local_entropy.text",
    "model.moe.losses.global_entropy.text",
    "model.moe.losses.global_entropy.image",
    "evaluators",
  ),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("recall10", "R@10"),
    ("recall1", "R@1"),
    ("loss", "training loss"),
    ("served_text", "text served"),
    ("served_image", "image served"),
    ("effective_experts_text", "exp H text"),
    ("effective_experts_image", "exp H image"),
    ("used_text", "used by text"),
    ("own_text", "text's own"),
    ("own_image", "image's own"),
    ("spikes", "spikes"),
  ),
  draw=draw,
  choice=CHOICE,
)
