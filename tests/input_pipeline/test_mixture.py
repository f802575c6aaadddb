"""Mixtures: what each source gives, what rows hold, what is dropped, who is read."""

import numpy as np
import pytest

from input_pipeline import examples, pipeline
from input_pipeline.sources import in_memory
from tests.input_pipeline import mixed
from tests.input_pipeline.mixed import batches, column, entry, make_config


@pytest.fixture(scope="module", autouse=True)
def sources():
  mixed.put()


THREE = (entry("pairs", 5), entry("images", 2), entry("texts", 1))


def test_shares_indices_and_ids(tokenizer):
  got, made = batches(make_config(tokenizer, THREE), 12)
  which = column(got, "label_source")
  assert np.bincount(which).tolist() == [60, 24, 12]
  for start in range(0, 96, 8):
    assert np.bincount(which[start : start + 8]).tolist() == [5, 2, 1]
  index, first = column(got, "index"), np.array([0, 23, 34])[which]
  assert ((index >= first) & (index < first + np.array([23, 11, 7])[which])).all()
  ids = column(got, "id")
  assert len(set(ids)) == len(set(index)) == 41
  assert made.state()["given"] == dict(pairs=60, images=24, texts=12)


def test_epochs_do_not_depend_on_other_sources(tokenizer):
  def places(*mixture, source=0):
    got, _ = batches(make_config(tokenizer, mixture), 16)
    return column(got, "index")[column(got, "label_source") == source].tolist()

  alone = places(entry("pairs", 1), entry("texts", 1))
  assert sorted(alone[:23]) == sorted(alone[23:46]) == list(range(23))
  assert alone[:23] != alone[23:46]
  beside = places(entry("pairs", 1), entry("images", 2), entry("texts", 3))
  assert beside == alone[: len(beside)] and len(beside) == 21
  twins = entry("a", 1, "pairs"), entry("b", 1, "pairs")
  assert places(*twins) != [i - 23 for i in places(*twins, source=1)]


def test_ids_are_shared_on_request_only(tokenizer):
  a, b = (entry(name, 1, "pairs", ids="pairs") for name in "ab")
  got, _ = batches(make_config(tokenizer, (a, b)), 6)
  assert set(column(got, "id")) == set(range(23))
  got, _ = batches(make_config(tokenizer, (entry("a", 1, "pairs"), b)), 6)
  assert set(column(got, "id")) == set(range(46))


def test_what_a_source_lacks_is_masked(tokenizer):
  got, _ = batches(make_config(tokenizer, THREE), 4)
  which = column(got, "label_source")
  np.testing.assert_array_equal(column(got, "image_valid"), which != 2)
  np.testing.assert_array_equal(column(got, "text_valid"), which != 1)
  assert (column(got, "image_mask") == (which != 2)[:, None]).all()
  assert (column(got, "image")[which == 2] == 0).all()
  assert (column(got, "text")[which == 1] == 0).all()
  assert not column(got, "text_mask")[which == 1].any()
  assert column(got, "text_mask")[which != 1].any(axis=1).all()
  assert (column(got, "label_words")[which == 1] == -1).all()
  assert (column(got, "label_words")[which != 1] > 0).all()
  alike, _ = batches(
    make_config(tokenizer, (entry("pairs", 1), entry("b", 1, "pairs"))), 1
  )
  assert not {"image_valid", "text_valid", "image_mask"} & alike[0].keys()


def test_transforms_are_a_sources_own(tokenizer):
  loud = (("normalize", dict(mean=(1.0,) * 3, std=(0.1,) * 3)), *mixed.TOLD)
  config = make_config(
    tokenizer, (entry("pairs", 1), entry("b", 1, "pairs", transforms=loud))
  )
  got, _ = batches(config, 3)
  own = column(got, "label_source") == 1
  assert column(got, "image")[own].min() < -7 < column(got, "image")[~own].min()


def test_single_source_batches(tokenizer):
  config = make_config(tokenizer, THREE, single_source=True)
  got, _ = batches(config, 16)
  sources = [set(b["label_source"].tolist()) for b in got]
  assert all(len(s) == 1 for s in sources)
  assert np.bincount([s.pop() for s in sources]).tolist() == [10, 4, 2]
  pairs = column(got, "index")[column(got, "label_source") == 0]
  assert sorted(pairs[:23]) == list(range(23))


def test_a_schedule_moves_from_one_source_to_another(tokenizer):
  fading = (
    entry("pairs", ((0, 1), (64, 0), (64, 1))),
    entry("texts", ((0, 0), (64, 1))),
  )
  got, _ = batches(make_config(tokenizer, fading), 12)
  which = column(got, "label_source")
  assert (which[:64].sum(), which[64:].sum()) == (32, 16)
  assert which[:16].sum() == 2 and which[48:64].sum() == 14


def dirty(tokenizer, **changes):
  decode = (("decode_image", {}), ("resize", {}), *mixed.RESIZED, *mixed.TOLD)
  in_memory.put(
    "partly",
    image_bytes=[b"x" if i % 5 == 0 else mixed.PNG for i in range(20)],
    captions=mixed.captions(20, 3),
  )
  return make_config(
    tokenizer,
    (entry("pairs", 1), entry("partly", 1, transforms=decode, **changes)),
  )


def test_drops_are_counted_by_source_against_its_own_limit(tokenizer):
  got, made = batches(dirty(tokenizer, max_dropped=0.5), 10)
  assert made.dropped.keys() == {"partly/not an image"}
  state = made.state()
  assert state["tried"]["pairs"] == 40 and state["dropped"]["pairs"] == 0
  lost = state["dropped"]["partly"]
  assert lost == made.dropped["partly/not an image"] >= 8
  assert state["tried"]["partly"] == 40 + lost
  which, index = column(got, "label_source"), column(got, "index")
  assert not set(index[which == 1] - 23) & {0, 5, 10, 15}
  resumed = batches(dirty(tokenizer, max_dropped=0.5), 0, state=state)[1]
  assert resumed.dropped == {"partly/before the restart": lost}
  with pytest.raises(examples.TooManyDropped, match=r"source 'partly': .*max_dropped"):
    batches(dirty(tokenizer, max_dropped=0.005), 10)


def test_evaluation_names_its_source(tokenizer):
  named = [(n, w, dict(source="in_memory", **changes)) for n, w, changes in THREE]
  config = make_config(tokenizer, named, source="")
  where = dict(split="train", process_index=0, process_count=1, batch_size=8)

  def read(options):
    return list(pipeline.eval_batches(config, options=options, **where))

  got = read({"source": "texts"})
  assert column(got, "valid").sum() == 7 and "image" not in got[0]
  assert column(read({"source": "images"}), "valid").sum() == 11
  assert len(pipeline.source(config, options={"source": "texts"})) == 7
  changed = pipeline.source(config, options={"source": "texts", "name": "images"})
  assert len(changed) == 11
  with pytest.raises(ValueError, match=r"nor, by its options' source.*\['pairs', 'im"):
    read({})


def test_preparing_reads_the_captions_of_all_sources(tokenizer, tmp_path):
  config = make_config("{workdir}/t.model", THREE)
  prepared = pipeline.prepare(config, str(tmp_path))
  assert prepared.data.tokenizer == str(tmp_path / "t.model")
  assert batches(prepared, 1)[0][0]["text"].shape == (8, 12)
  config = make_config("{workdir}/u.model", (entry("images", 1),))
  with pytest.raises(ValueError, match=r"no 'captions', only \['image'\]"):
    pipeline.prepare(config, str(tmp_path))


def test_another_mixture_on_resume(tokenizer):
  state = batches(make_config(tokenizer, THREE), 4)[1].state()
  assert state["given"] == dict(pairs=20, images=8, texts=4)
  for other in (THREE[:2], (*THREE[:2], entry("texts", 2)), ()):
    with pytest.raises(ValueError, match=r"by example 32 .*\(old, 32, new\)"):
      batches(make_config(tokenizer, other), 1, state=state)
  more = (*THREE[:2], entry("texts", (1, 32, 4)))
  got, _ = batches(make_config(tokenizer, more), 11, state=state)
  assert np.bincount(column(got, "label_source")).tolist() == [40, 16, 32]
  with pytest.raises(ValueError, match="the run had read a single source"):
    batches(make_config(tokenizer, THREE), 1, state=dict(example=8, tried=8, dropped=0))
  single = make_config(tokenizer, THREE, single_source=True)
  state = batches(single, 1)[1].state()
  single.batch_size = 16
  with pytest.raises(ValueError, match="stands at example 8, amid 16"):
    batches(single, 1, state=state)


@pytest.mark.parametrize("data", [{}, dict(buckets=(4,)), dict(single_source=True)])
def test_the_shares_of_a_run_change_while_a_weight_is_on_its_way(tokenizer, data):
  ramp, rest = ((0, 1), (200, 7)), (entry("images", 2), entry("texts", 1))
  old = make_config(tokenizer, (entry("pairs", ramp), *rest), **data)
  before, made = batches(old, 9)
  changed = entry("pairs", (ramp, 72, ((72, 3), (120, 0))))
  new = make_config(tokenizer, (changed, *rest), **data)
  whole, _ = batches(new, 16)
  got, resumed = batches(new, 7, state=made.state())
  for a, b in zip([*before, *got], whole, strict=True):
    np.testing.assert_array_equal(a["index"], b["index"])
  given = resumed.state()["given"].items()
  pairs = sum(n for name, n in given if name.split("/")[0] == "pairs")
  assert pairs == np.sum(column(whole, "label_source") == 0)
  batches(new, 1, state=batches(old, 5)[1].state())  # an earlier checkpoint will do


@pytest.mark.parametrize(
  ("mixture", "error"),
  [
    (("pairs",), "must be"),
    ((("pairs", 1, None),), "must be"),
    ((entry("pairs", 1), entry("pairs", 1)), "two sources named 'pairs'"),
    ((entry("a/b", 1, "pairs"),), "no name"),
    ((("a", 1, dict(optoins={})),), "did you mean options"),
    ((entry("pairs", "much"),), r"mixture\[0\]: the weight"),
  ],
)
def test_errors(tokenizer, mixture, error):
  with pytest.raises(ValueError, match=error):
    batches(make_config(tokenizer, mixture), 1)


def test_arrays_of_another_shape(tokenizer):
  ids = (("sample_caption", {}), ("tokenize", dict(length=6)))
  config = make_config(
    tokenizer, (entry("texts", 1), entry("b", 1, "texts", transforms=ids))
  )
  with pytest.raises(ValueError, match=r"int32\[6\].*reads int32\[12\]"):
    batches(config, 1)
