"""big_vision's towers, against their architecture written in NumPy, and there and back.

The library is on no package index; what it computes is written down here once more,
from its papers and its names of parameters, and shares no code with model/.
"""

import json

from flax import traverse_util
import jax
import numpy as np
import pytest

from model.interop import big_vision, convert, files
from tests.model.interop import models, peers
from tools import convert as tool


def make(pool="map", project=False, sigmoid=True):
  """Returns a checkpoint of random numbers, by their names."""
  rng = np.random.default_rng(0)
  w, d, heads, mlp, n, length = 8, 6, 2, 12, 9, peers.TEXT["length"]
  shapes = {
    "img/embedding/kernel": (4, 4, 3, w),
    "img/embedding/bias": (w,),
    "img/pos_embedding": (1, n, w),
    "txt/Embed_0/embedding": (peers.TEXT["vocab"], w),
    "txt/pos_embedding": (1, length, w),
    "txt/head/kernel": (w, d if project else w),
    "txt/head/bias": (d if project else w,),
    "t": (1,),
  }

  def norm(name):
    return {f"{name}/scale": (w,), f"{name}/bias": (w,)}

  def attention(name):
    one = {
      f"{name}/{p}/kernel": (w, heads, w // heads) for p in ("query", "key", "value")
    }
    one |= {f"{name}/{p}/bias": (heads, w // heads) for p in ("query", "key", "value")}
    return one | {
      f"{name}/out/kernel": (heads, w // heads, w),
      f"{name}/out/bias": (w,),
    }

  def layers(name):
    up, down = f"{name}/Dense_0", f"{name}/Dense_1"
    one = {f"{up}/kernel": (w, mlp), f"{up}/bias": (mlp,)}
    return one | {f"{down}/kernel": (mlp, w), f"{down}/bias": (w,)}

  for tower, depth in (("img/Transformer", 1), ("txt/Encoder_0", 2)):
    for i in range(depth):
      block = f"{tower}/encoderblock_{i}"
      shapes |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_1")
      shapes |= attention(f"{block}/MultiHeadDotProductAttention_0")
      shapes |= layers(f"{block}/MlpBlock_0")
    shapes |= norm(f"{tower}/encoder_norm")
  if pool == "map":
    head = "img/MAPHead_0"
    shapes |= {f"{head}/probe": (1, 1, w)} | norm(f"{head}/LayerNorm_0")
    shapes |= attention(f"{head}/MultiHeadDotProductAttention_0")
    shapes |= layers(f"{head}/MlpBlock_0")
  if pool == "tok":
    shapes["img/cls"] = (1, 1, w)
  if project:
    shapes |= {"img/head/kernel": (w, d), "img/head/bias": (d,)}
  if sigmoid:
    shapes["b"] = (1,)
  return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def theirs(state, batch, pool):
  """Returns label -> output, in float64."""
  p = {k: x.astype(np.float64) for k, x in state.items()}
  out = {}

  def norm(name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]

  def attend(name, query, x):
    q, k, v = (
      np.einsum("bnw,whd->bhnd", y, p[f"{name}/{part}/kernel"])
      + p[f"{name}/{part}/bias"][None, :, None]
      for part, y in (("query", query), ("key", x), ("value", x))
    )
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhnd,hdw->bnw", weights @ v, p[f"{name}/out/kernel"])
    return y + p[f"{name}/out/bias"]

  def mlp(name, x):
    x = x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"]
    x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]

  def encode(m, tower, x):
    blocks = {k.split("/")[2] for k in p if k.startswith(f"{tower}/encoderblock_")}
    for i in range(len(blocks)):
      block = f"{tower}/encoderblock_{i}"
      y = norm(f"{block}/LayerNorm_0", x)
      x = x + attend(f"{block}/MultiHeadDotProductAttention_0", y, y)
      x = x + mlp(f"{block}/MlpBlock_0", norm(f"{block}/LayerNorm_1", x))
      out[f"{m}/block_{i:02d}"] = x
    out[f"{m}/tokens"] = norm(f"{tower}/encoder_norm", x)
    return out[f"{m}/tokens"]

  image = batch["image"].astype(np.float64)
  b, side, _, c = image.shape
  x = image.reshape(b, side // 4, 4, side // 4, 4, c).transpose(0, 1, 3, 2, 4, 5)
  x = np.einsum("bnmijc,ijcw->bnmw", x, p["img/embedding/kernel"]).reshape(b, -1, 8)
  x = x + p["img/embedding/bias"] + p["img/pos_embedding"]
  if pool == "tok":
    x = np.concatenate([np.broadcast_to(p["img/cls"], (b, 1, 8)), x], axis=1)
  x = encode("image", "img/Transformer", x)
  if pool == "map":
    head = "img/MAPHead_0"
    probe = np.broadcast_to(p[f"{head}/probe"], (b, 1, 8))
    y = attend(f"{head}/MultiHeadDotProductAttention_0", probe, x)
    image = (y + mlp(f"{head}/MlpBlock_0", norm(f"{head}/LayerNorm_0", y)))[:, 0]
  else:
    image = x[:, 0] if pool == "tok" else x.mean(1)
  if "img/head/kernel" in p:
    image = image @ p["img/head/kernel"] + p["img/head/bias"]
  x = p["txt/Embed_0/embedding"][batch["text"]] + p["txt/pos_embedding"]
  text = encode("text", "txt/Encoder_0", x)[:, -1]
  text = text @ p["txt/head/kernel"] + p["txt/head/bias"]
  out |= {"image/embedding": image, "text/embedding": text}
  unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (image, text)]
  out["logits"] = np.exp(p["t"]) * unit[0] @ unit[1].T + p.get("b", 0.0)
  return out


CASES = [("map", False, True), ("tok", True, False), ("gap", True, True)]


@pytest.mark.parametrize(("pool", "project", "sigmoid"), CASES)
def test_every_layer_and_there_and_back(pool, project, sigmoid):
  state = make(pool, project, sigmoid)
  config, params, found = convert.load(state)
  assert found.missing == () and found.unused == ()
  batch, _ = peers.batch_of(-1)
  got, mask = peers.ours(config, params, batch)
  assert mask.all()
  peers.compare(got, theirs(state, batch, pool), mask)

  back, card = convert.save(config, params, "big_vision")
  models.same(back, state)
  assert card["image"]["pool_type"] == pool
  assert card["out_dim"] == [6 if project else None, 6 if project else 8]
  config.model.scan = True
  stacked, _ = convert.save(config, params, "big_vision")
  assert "txt/Encoder_0/encoderblock/LayerNorm_0/scale" in stacked
  assert len(stacked) < len(state)
  again = {f"params/{k}": x for k, x in stacked.items()}
  models.same(convert.load(again)[1], params)
  models.same(big_vision.normal(stacked), state)


def test_more_than_nine_blocks_are_stacked_in_order():
  state = {f"img/Transformer/encoderblock_{i}/x": np.full(1, i) for i in range(11)}
  (x,) = big_vision.scanned(state).values()
  assert x[:, 0].tolist() == list(range(11))


def test_texts_positions_that_are_there_twice_are_added():
  state = make()
  twice = state["txt/pos_embedding"] / 2
  old = state | {"txt/pos_embedding": twice, "txt/Encoder_0/pos_embedding": twice}
  models.same(convert.load(old)[1], convert.load(state)[1])


def test_files(tmp_path, capsys):
  state = make()
  source, ours, back = (tmp_path / name for name in ("x.npz", "ours", "back"))
  np.savez(source, **state)
  tool.main(["--from", str(source), "--to", str(ours), "--format", "concord"])
  said = capsys.readouterr().out
  assert "big_vision's two towers with a sigmoid loss" in said
  assert "assumed" not in said  # its arrays say all
  tool.main(["--from", str(ours), "--to", str(back), "--format", "big_vision"])
  models.same(files.read(back)[0], state)
  assert json.loads((back / "big_vision.json").read_text())["image"]["num_heads"] == 2
  tool.main(["--from", str(ours), "--to", str(tmp_path / "hf"), "--format", "hf"])

  half = {k: x.astype(jax.numpy.bfloat16) for k, x in state.items()}
  np.savez(tmp_path / "half.npz", **half)
  models.same(files.read(tmp_path / "half.npz")[0], half)
  np.savez(tmp_path / "evil.npz", x=np.asarray([{}], object))
  for bad, text in (("evil.npz", "not a whole .npz"), ("cut.npz", "not a whole .npz")):
    (tmp_path / "cut.npz").write_bytes(source.read_bytes()[:99])
    with pytest.raises(ValueError, match=text):
      files.read(tmp_path / bad)


def test_what_it_cannot_hold_is_refused_by_key():
  config, params, _ = convert.load(make())
  config.model.trunk.activation = "gelu"
  with pytest.raises(ValueError, match=r"image\.trunk\.activation = 'gelu', expected"):
    convert.save(config, params, "big_vision")
  config, params, _ = convert.load(make("gap", True))
  config.model.modalities.image.pool = "last"
  with pytest.raises(ValueError, match=r"image\.pool = 'last'.*has the pools map, cls"):
    convert.save(config, params, "big_vision")
  flat = traverse_util.flatten_dict(params["towers"])
  assert all(x.dtype == np.float32 for x in flat.values())
