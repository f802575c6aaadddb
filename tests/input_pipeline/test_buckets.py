"""What examples are measured by, and when old measures are not taken."""

import io

import numpy as np
from PIL import Image
import pytest

from input_pipeline import buckets, pipeline
from input_pipeline.sources import in_memory
from input_pipeline.transforms import decode_image
from tests.input_pipeline import mixed
from tests.input_pipeline.mixed import batches, make_config

TEXTS = [t.title() + ", it's a_text!" for t in mixed.captions(12, 5)]


def make(tokenizer, told, name="measured", **data):
  config = make_config(tokenizer, transforms=told, options={"name": name}, **data)
  del config.model.modalities.image
  config.model.modalities.text.length = 64
  return config


def measured(config):
  reads = buckets.readers(pipeline.transforms(config, "transforms"))
  return buckets.measure(pipeline.source(config), reads)["text"].tolist()


def made(config):
  """The ids of each example, as the transforms make them."""
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  maker = loader._stream.members[0].maker
  return [int(maker.eval_row(i)["text_mask"].sum()) for i in range(len(maker))]


@pytest.mark.parametrize(
  "options",
  [
    dict(),
    dict(begin=(2,)),
    dict(begin=(2, 1), end=(3, 1, 3)),
    dict(end=()),
    dict(begin=(2,), eos=False),
    dict(clean="plain"),
  ],
)
def test_lengths_are_those_of_the_ids_and_their_ends(tokenizer, options):
  in_memory.put("measured", captions=TEXTS)
  config = make(tokenizer, (("sample_caption", {}), ("tokenize", options)))
  assert measured(config) == made(config)


@pytest.mark.parametrize(
  "told",
  [
    (("sample_caption", dict(captions="title")), ("tokenize", {})),
    (("tokenize", dict(key="title")),),
    (
      ("sample_caption", dict(captions="title", key="said")),
      ("tokenize", dict(key="said")),
    ),
  ],
)
def test_what_tokenize_reads_is_measured(tokenizer, told):
  in_memory.put("measured", title=TEXTS, captions=["a"] * len(TEXTS))
  config = make(tokenizer, told)
  whole = made(config)
  assert measured(config) == whole
  config.data.buckets = (min(whole), max(whole) - 1)
  for batch in batches(config, 12)[0]:
    for index, mask in zip(batch["index"], batch["text_mask"]):
      assert mask.sum() == whole[index]


def test_a_text_that_may_come_from_several_keys(tokenizer):
  names = [{"group": "a small old round red fish", "subgroup": ""}, {"group": "a"}]
  in_memory.put("measured", captions=["cat", "a tall cat"], class_names=names)
  told = (("sample_caption", dict(lowercase=True)), ("graded_query", {}))
  config = make(tokenizer, (*told, ("tokenize", {})))
  (read,) = buckets.readers(pipeline.transforms(config, "transforms"))
  assert read.keys == ("captions", "class_names") and read.lower
  count = read.counter()
  assert measured(config) == [count(names[0]["group"]), count("a tall cat")]


def test_no_length_to_go_by(tokenizer):
  in_memory.put("measured", title=["", ""], captions=TEXTS[:2])
  told = (("sample_caption", dict(captions="title")), ("tokenize", {}))
  with pytest.raises(ValueError, match=r"buckets: none of 2 .* under \['title'\]"):
    batches(make(tokenizer, told, buckets=(4,)), 1)
  told = (("pair_classes", dict(label="kind")), ("sample_caption", {}), told[1])
  in_memory.put("measured", captions=TEXTS[:2], label_kind=[0, 1])
  with pytest.raises(ValueError, match="buckets does not go with pair_classes"):
    batches(make(tokenizer, told, buckets=(4,)), 1)


def test_measures_are_made_again_where_anything_changed(tokenizer, tmp_path):
  told = (("sample_caption", {}), ("tokenize", {}))
  in_memory.put("measured", captions=TEXTS)
  config = make(tokenizer, told, buckets=(9,), lengths=f"{tmp_path}/lengths")
  file = tmp_path / "lengths" / "all.npz"

  def measured_again():
    before = file.read_bytes() if file.exists() else b""
    pipeline.prepare(config, str(tmp_path))
    return file.read_bytes() != before

  assert measured_again() and not measured_again()
  in_memory.put("measured", captions=TEXTS[::-1])
  assert measured_again() and not measured_again()
  in_memory.put("measured, too", captions=TEXTS[::-1])
  config.data.options.name = "measured, too"
  assert measured_again() and not measured_again()
  config.data.split = "other"
  assert measured_again() and not measured_again()
  for options in (dict(begin=(2,)), dict(eos=False), dict(clean="plain")):
    config.data.transforms = (told[0], ("tokenize", options))
    assert measured_again() and not measured_again()


def test_changed_images_are_measured_again():
  def stamp(images):
    in_memory.put("images", image_bytes=images)
    return buckets.stamp(in_memory.Source(name="images"), (), {})

  images = [mixed.png(np.zeros((4, 5 + i % 2, 3))) for i in range(70)]
  assert stamp(images) == stamp(images)
  assert stamp(images) != stamp(images[1:] + images[:1])
  assert stamp(images) != stamp(images[:-1])


@pytest.mark.parametrize(
  ("kind", "late"),
  [("JPEG", False), ("PNG", False), ("PNG", True), ("WEBP", False), ("TIFF", False)],
)
def test_a_photo_is_measured_as_it_stands(kind, late):
  files = []
  for orientation in (1, 3, 5, 6, 7, 8, 9, None):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation or 1
    told = {"tiffinfo": {0x0112: orientation or 1}} if kind == "TIFF" else {}
    told |= {"exif": exif} if orientation and kind != "TIFF" else {}
    Image.new("RGB", (10, 4)).save(file, kind, **told)
    files.append(file.getvalue())
  if late:  # EXIF may follow the pixels
    files = [exif_last(data) for data in files]
  in_memory.put("photos", image_bytes=files)
  found = buckets.measure(in_memory.Source(name="photos"))["image"]
  decode, rng = decode_image.Transform(), np.random.default_rng(0)
  want = [decode({"image_bytes": d}, rng)["image"].shape[:2] for d in files]
  assert found.tolist() == [list(shape) for shape in want]
  assert [10, 4] in found.tolist() and [4, 10] in found.tolist()


def exif_last(data):
  at = data.find(b"eXIf") - 4
  if at < 0:
    return data
  end = at + 12 + int.from_bytes(data[at : at + 4])
  return data[:at] + data[end:-12] + data[at:end] + data[-12:]
