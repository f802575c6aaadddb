import io

import numpy as np
from PIL import Image
import pytest

from benchmarks import emoji_floors
from tools import collect

pytest.importorskip("sklearn")
COLOURS = {
  "red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30),
  "black": (10, 10, 10), "yellow": (230, 220, 40), "purple": (150, 40, 160),
}  # fmt: skip
PLACES = ("north", "south", "east", "west", "middle", "corner")


def picture(colour, place, side=24, style=0):
  image = Image.new("RGBA", (side, side), (255, 255, 255, 0))
  x, y = (8 * (PLACES.index(place) % 3), 12 * (PLACES.index(place) // 3))
  shade = tuple(max(c - 25 * style, 0) for c in COLOURS[colour])
  image.paste((*shade, 255), (x, y, x + 8, y + 12))
  data = io.BytesIO()
  image.save(data, "PNG")
  return data.getvalue()


def examples(family, style=0, named=True):
  out = []
  for i, (c, p) in enumerate((c, p) for c in COLOURS for p in PLACES):
    if family(i):
      name = f"{c} thing in the {p}" if named else f"word{(i * 7919) % 997}"
      out.append(
        {
          "image_bytes": picture(c, p, style=style),
          "captions": {"en": (name, "alias"), "de": ("x",)},
          "id": i,
          "key": f"k{i}",
          "family": i,
          "label_flag": int(c == "red"),
          "label_group": PLACES.index(p) if i != 3 else -1,
        }
      )
  return out


def train_items(**kw):
  return examples(lambda i: i % 4 != 0, **kw)


def test_items(**kw):
  return examples(lambda i: i % 4 == 0, **kw)


test_items.__test__ = False


def test_shrinking_composites_on_white():
  x = emoji_floors.shrink(picture("red", "north"), side=12).reshape(12, 12, 3)
  np.testing.assert_allclose(x[-1, -1], 1.0)
  np.testing.assert_allclose(x[0, 0], np.asarray(COLOURS["red"]) / 255, atol=0.01)


def test_ridge_matches_the_normal_equations():
  rng = np.random.default_rng(0)
  x, y, new = rng.normal(size=(9, 5)), rng.normal(size=(9, 2)), rng.normal(size=(4, 5))
  a, b = x - x.mean(0), y - y.mean(0)
  weights = np.linalg.solve(a.T @ a + 3.0 * np.eye(5), a.T @ b)
  ridge = emoji_floors.Ridge(x)
  predicted = ridge.predict(ridge.targets(y), ridge.inputs(new), 3.0)
  np.testing.assert_allclose(predicted, (new - x.mean(0)) @ weights, atol=1e-9)


def test_names_are_embedded_as_by_a_truncated_svd():
  space = emoji_floors.text_spaces()["letters 2-4"]
  train, test = ["red cat", "red dog", "blue cat", "bird"], ["blue dog", "cat"]
  known, new = emoji_floors.embed_names(space, train, test)
  counts, more = space.transform(train).toarray(), space.transform(test).toarray()
  _, s, right = np.linalg.svd(counts, full_matrices=False)
  for x, dense in ((known, counts), (new, more)):
    np.testing.assert_allclose(np.abs(x), np.abs(dense @ right.T), atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(known, axis=0), s, rtol=1e-5)


def test_folds_never_split_a_family():
  family = np.asarray([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
  held = []
  for fit, out in emoji_floors.folds(family, 3):
    assert not set(family[fit]) & set(family[out])
    held.extend(out)
  assert sorted(held) == list(range(10))


def test_the_floor_learns_names_made_of_known_words():
  out = emoji_floors.floors(train_items(), test_items())
  assert (out["n"], out["n_train"]) == (9, 27)
  # Place times colour is not linear in the pixels: far above chance, but no more.
  assert out["i2t_r1"] > 3 * out["i2t_chance_r1"]
  assert out["t2i_r5"] > 0.8
  assert out["without_flag/n"] == 7
  assert out["without_flag/i2t_r1"] >= out["i2t_r1"] * 9 / 7 - 2 / 7
  assert out["probe_group"] > 0.7 > 2 * out["probe_group_majority"]
  assert out["chosen"]["rank"] in emoji_floors.RANKS


def test_the_floor_knows_nothing_of_words_never_seen():
  train, test = train_items(named=False), test_items(named=False)
  out = emoji_floors.retrieval_floor(*map(emoji_floors.read, (train, test)))
  assert out["i2t_r1"] < 3 * out["i2t_chance_r1"]


def test_style_floor_names_by_the_nearest_drawing():
  drawn = train_items()
  out = emoji_floors.style_floor(drawn, train_items(style=1))
  assert out["i2t_r1"] > 0.9
  assert out["i2t_chance_r1"] == pytest.approx(1 / 27)
  # Concepts that were never drawn are misses, other drawings remain rivals.
  both = emoji_floors.style_floor(drawn, train_items(style=1) + test_items(style=1))
  assert both["drawn"] == pytest.approx(27 / 36)
  assert both["i2t_r1"] == pytest.approx(out["i2t_r1"] * 27 / 36)
  few = emoji_floors.style_floor(drawn, train_items(style=1)[:3])
  assert few["concepts"] == 27


def test_style_floor_takes_the_nearest_of_several_drawings():
  drawn = examples(lambda i: True, style=3) + examples(lambda i: True)
  out = emoji_floors.style_floor(drawn, examples(lambda i: True))
  assert (out["i2t_r1"], out["concepts"]) == (1.0, 36)


def test_the_floor_can_read_descriptors_instead_of_pixels():
  out = emoji_floors.floors(train_items(), test_items(), described=True)
  assert out["i2t_r1"] > 3 * out["i2t_chance_r1"]
  items = emoji_floors.read(test_items(), described=True)
  cells, gradients = 9 * 4**3, 64 * 8
  assert items.features.shape == (9, cells + gradients)


def test_results_of_seeds_can_be_tabulated():
  runs = [{"i2t_r1": 1.0, "chosen": {"rank": 2}}, {"i2t_r1": 3.0, "chosen": {}}]
  out = emoji_floors.results(runs, "floor: x", ["--seeds", "2"])
  assert out["made"][0]["command"] == "python -m benchmarks.emoji_floors --seeds 2"
  assert out["metrics"] == {"eval/retrieval/i2t_r1": [1.0, 3.0]}
  assert "floor: x | 2.000" in collect.table([out])
