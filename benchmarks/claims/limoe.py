"""LIMoE (arXiv 2206.02770): what the entropy losses are for, on the emoji set.

python -m benchmarks.claims limoe

One trunk for both modalities, 36 image patches against some 7 words' pieces, 32 experts
in its last block, and slots for the mean load only. The recipe is
configs/limoe_emoji.py, run by the training loop as it is, smaller, and without the wide
paths past the trunk, which would learn most of the matching without it.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np

from benchmarks.claims.shared import sparse
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from configs import limoe_emoji
from tools import report_plots as plots
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
WINDOW = 10  # logged steps before, whose median a spike is measured against
SPIKE = 2.0  # times that median


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
  run = sparse.train(config, workdir)
  figures = {"finite": run.finite, "flops_per_step": metrics_lib.model_flops(config)}
  for k in (1, 10):
    figures[f"recall{k}"] = run.retrieval(MODALITIES, f"r{k}")
  norms = np.array([r["grad_norm"] for r in run.steps])
  ratio = spikes(norms)[config.optimizer.warmup // config.log_every :]
  figures["spikes"] = float(np.mean(ratio > SPIKE)) if len(ratio) else 0.0
  figures["largest_spike"] = float(ratio.max()) if len(ratio) else 0.0
  figures["loss"] = run.loss
  arrays: dict[str, Any] = {"step": [r["step"] for r in run.steps[:: sparse.EVERY]]}
  arrays["grad_norm"] = sparse.rounded(norms[:: sparse.EVERY])
  if config.model.moe.every:
    figures |= sparse.routing(run.steps, MODALITIES)
    arrays |= sparse.arrays(run, MODALITIES)
  return Measured(figures, arrays)


def spikes(norms: np.ndarray) -> np.ndarray:
  """Returns f32[n]: each gradient norm over the median of the WINDOW before it."""
  before = [norms[max(0, i - WINDOW) : i] for i in range(len(norms))]
  return np.array([x / np.median(b) if len(b) else 1.0 for x, b in zip(norms, before)])


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
    sparse.curves(ax, result, name, colours)
    ax.set_title(title)
  axes[0, 1].axhline(_threshold("text"), color=plots.INK, ls=":", lw=1)
  axes[1, 0].set_yscale("log")
  axes[1, 0].legend(ncols=2)
  for ax, arm in ((axes[1, 1], "classic"), (axes[1, 2], "full")):
    sparse.matrix(ax, result, arm, MODALITIES)
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
