"""Thousands of damaged files: each is an example or a Drop with a reason, in good time.

Mutations are seeded: bits flipped, ends cut off, pieces moved within a file or taken
from another, headers edited. The counts are printed; see them with -s. Those of the
thousands go to the file that FUZZ_OUT names, for docs/reliability.md:
FUZZ_OUT=docs/results/reliability/fuzz.json python -m pytest -m slow <this file>
"""

import collections
import io
import json
import os
import pathlib
import tarfile
import time
import zlib

import numpy as np
import PIL
from PIL import Image
import pytest

from input_pipeline import tar_index
from input_pipeline.drop import Drop
from input_pipeline.sources import image_folder, jsonl, karpathy, webdataset
from input_pipeline.transforms import (
  decode_image,
  random_resized_crop,
  resize,
  sample_caption,
  tokenize,
)
from tests.input_pipeline.test_webdataset import tar
from training import environment

# Pillow warns of odd files that it reads all the same; in training it only says so.
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 10  # of one mutation: a hang, not a slow machine
INTERESTING = (b"\0", b"\xff", b"\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0")
JSON_PIECES = (
  b'"',
  b"{",
  b"]",
  b"\\ud800",
  b"null",
  b"1e999",
  b"..",
  b"/",
  b"\n",
  b"[",
)


def encoded(kind, mode="RGB", **options):
  pixels = np.random.default_rng(3).integers(0, 255, (13, 17, 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, kind, **options)
  return file.getvalue()


def animation(kind):
  frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue", "green")]
  file = io.BytesIO()
  frames[0].save(file, kind, save_all=True, append_images=frames[1:])
  return file.getvalue()


def images():
  """Returns small files of every format, with exotic modes, animations and EXIF."""
  exif = Image.Exif()
  exif[0x0112], exif[0x010E] = 6, "a description"
  return [
    encoded("PNG", exif=exif),
    encoded("PNG", "P", transparency=3),
    encoded("PNG", "LA"),
    sixteen(),
    encoded("JPEG", exif=exif),
    encoded("JPEG", progressive=True),
    encoded("JPEG", "CMYK"),
    encoded("WEBP", exif=exif),
    encoded("WEBP", "RGBA", lossless=True),
    animation("WEBP"),
    encoded("GIF"),
    animation("GIF"),
    encoded("BMP"),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("PPM"),
  ]


def sixteen():
  file = io.BytesIO()
  Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(file, "PNG")
  return file.getvalue()


def checksums_repaired(data):
  """Returns a PNG whose chunks have the right CRC: damage then gets past the first."""
  data, at = bytearray(data), 8
  if not data.startswith(b"\x89PNG"):
    return bytes(data)
  while at + 12 <= len(data):
    end = at + 8 + int.from_bytes(data[at : at + 4], "big")
    if end + 4 > len(data):
      break
    data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
    at = end + 4
  return bytes(data)


def mutated(data, rng, others, pieces=INTERESTING):
  """Returns the data with one change, sometimes up to four."""
  data = bytearray(data)
  for _ in range(min(4, int(rng.geometric(0.6)))):
    kind, size = int(rng.integers(6)), max(len(data), 1)
    at, to = sorted(int(x) for x in rng.integers(0, size, 2))
    if kind == 0 and data:  # bits
      for i in rng.integers(0, size, int(rng.integers(1, 9))):
        data[i] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # cut off
      del data[at:]
    elif kind == 2:  # a piece of this or of another file
      other = others[int(rng.integers(len(others)))]
      start = int(rng.integers(max(len(other), 1)))
      data[at:to] = other[start : start + int(rng.integers(200))]
    elif kind == 3:  # the header
      piece = pieces[int(rng.integers(len(pieces)))]
      place = int(rng.integers(min(size, 64)))
      data[place : place + len(piece)] = piece
    elif kind == 4:  # anywhere
      piece = pieces[int(rng.integers(len(pieces)))]
      data[at : at + len(piece)] = piece
    else:  # a piece again, or gone
      data[at:at] = data[at:to] if rng.random() < 0.5 else b""
      del data[to : to + int(rng.integers(20))]
  return bytes(data)


def outcome(call):
  """Returns "example" or the reason; whatever else is raised fails the test."""
  start = time.perf_counter()
  try:
    assert call() is not None
    found = "example"
  except Drop as e:
    assert e.reason and len(e.reason) < 60
    found = e.reason
  assert time.perf_counter() - start < SECONDS
  return found


def fuzz_images(count):
  counts = collections.Counter()
  seeds = images()
  decoders = [
    decode_image.Transform(max_pixels=2**20),
    decode_image.Transform(max_pixels=2**20, min_side=4, size=(8, 8)),
    random_resized_crop.Transform(size=(5, 4), scale=(0.1, 1.5), rotate=10.0),
    resize.Transform(size=(4, 4), crop=0.9),
  ]
  small = resize.Transform(size=(8, 8))
  for i, data in enumerate(seeds):
    for seed in range(count):
      rng = np.random.default_rng((i, seed))
      bad = mutated(data, rng, seeds)
      if seed % 3 == 0:
        bad = checksums_repaired(bad)

      def decode(bad=bad, decoder=decoders[seed % 4], rng=rng):
        example = decoder({"image_bytes": bad}, rng)
        assert example["image"].dtype == np.uint8
        image = small(example, rng)["image"]
        assert image.shape == (8, 8, 3)
        return image

      counts[outcome(decode)] += 1
  return counts


def fuzz_tars(count, folder):
  counts = collections.Counter()
  members = []
  for i in range(3):
    members += [(f"d/{i}.png", b"\x89PNG" * 50), (f"d/{i}.txt", b"caption %d" % i)]
    members += [(f"d/{i}.json", b'{"a": {"b": ["c"]}}'), (f"{'n' * 150}{i}.txt", b"x")]
  seeds = [tar(members, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
  wanted = {"png;jpg": "image_bytes", "txt": "captions", "json:a.b": "extra"}
  path = folder / "x.tar"
  for seed in range(count):
    rng = np.random.default_rng(seed)
    bad = mutated(seeds[seed % 2], rng, seeds, (*INTERESTING, b"../", b"2"))
    path.write_bytes(bad)
    (folder / "x.tar.index").unlink(missing_ok=True)
    source = webdataset.Source(paths=str(path), members=wanted, max_bytes=2**20)
    start = time.perf_counter()
    length = len(source)
    assert time.perf_counter() - start < SECONDS
    assert tar_index._is_sound(source._indices[0])
    for i in range(length):
      counts[outcome(lambda s=source, i=i: s[i])] += 1
  return counts


def fuzz_lines(count, folder):
  counts = collections.Counter()
  (folder / "a.png").write_bytes(b"png")
  (folder / "b.png").write_bytes(b"png")
  good = [
    {"image": "a.png", "caption": "a cat", "id": 3},
    {"image": "b.png", "caption": {"en": ["a", "b"], "fr": "c"}, "id": 4},
  ]
  lines = "\n".join(map(json.dumps, good)).encode()
  table = 'image,caption\na.png,"a ""cat"", é"\nb.png,b\na.png,c\n'.encode()
  sample = sample_caption.Transform(word_dropout=0.5)
  texts = [{"raw": "a cat"}, {"raw": "b"}]
  entry = {"filename": "a.png", "split": "train", "imgid": 7, "sentences": texts}
  splits = json.dumps({"images": [entry, entry]}).encode()
  for seed in range(count):
    rng = np.random.default_rng(seed)
    (folder / "k.json").write_bytes(mutated(splits, rng, [lines, splits], JSON_PIECES))
    path = folder / "x.jsonl"
    path.write_bytes(mutated(lines, rng, [lines, table], JSON_PIECES))
    (folder / "x.csv").write_bytes(mutated(table, rng, [lines, table], JSON_PIECES))
    sources = [jsonl.Source(paths=str(path), fields={"id": "id"})]
    sources.append(image_folder.Source(root=str(folder), table="x.csv"))
    sources.append(karpathy.Source(path=str(folder / "k.json"), per="caption"))
    for source in sources:
      try:
        length = len(source)
      except ValueError as e:  # a table's header, or a whole JSON: no example's fault
        assert "config.data.options." in str(e)
        counts["not the layout"] += 1
        continue
      for i in range(length):
        counts[outcome(lambda s=source, i=i, rng=rng: sample(s[i], rng))] += 1
  return counts


def fuzz_captions(count, tokenizer):
  counts = collections.Counter()
  texts = [
    b"a cat on a mat",
    "ネコ 🐱 naïve".encode(),
    b"caf\xe9",
    b"\0\x01\x7f",
    b"a " * 50_000,
    b"x" * 100_000,
    "\u0301\u202e\ufeff\u200d".encode() * 50,
  ]
  sample = sample_caption.Transform()
  ids = tokenize.Transform(
    tokenizer=tokenizer, vocab=300, length=12, ngrams=8, ngram_rows=1000, nbest=2
  )
  for seed in range(count):
    rng = np.random.default_rng(seed)
    bad = mutated(texts[seed % len(texts)], rng, texts)
    form = (
      bad,
      bad.decode("utf-8", "surrogateescape"),
      [bad, None],
      {"en": bad, "": 3},
    )
    captions = form[seed // len(texts) % 4]

    def run(captions=captions, rng=rng):
      row = ids(sample({"captions": captions}, rng), rng)["text"]
      assert row.shape == (20,) and row.dtype == np.int32
      return row

    counts[outcome(run)] += 1
  return counts


def fuzz(scale, folder, tokenizer):
  return {
    "images": fuzz_images(15 * scale),
    "tars": fuzz_tars(40 * scale, folder),
    "lines and tables": fuzz_lines(30 * scale, folder),
    "captions": fuzz_captions(28 * scale, tokenizer),
  }


def check(found):
  """Asserts that the mutations reached what they are to reach."""
  for kind, counts in found.items():
    print(f"{kind}: {counts.total()}: {dict(counts.most_common())}")
    assert counts["example"] and len(counts) > 2, kind
  assert {"truncated image", "broken image", "not an image"} <= set(found["images"])
  assert "damaged tar" in found["tars"]
  assert "broken JSON" in found["lines and tables"]
  assert "caption is not UTF-8" in found["captions"]


def report(found):
  """Returns the counts as rows of docs/reliability.md, with where they are from."""
  rows = []
  for kind, counts in found.items():
    dropped = counts.total() - counts["example"]
    reasons = ", ".join(
      f"{name} {n:,}" for name, n in counts.most_common() if name != "example"
    )
    rows.append(
      {
        "what": f"damaged {kind} given to the decoders and sources",
        "times": counts.total(),
        "outcome": f"{counts['example']:,} were still examples, {dropped:,} dropped: "
        f"{reasons}; nothing else was raised and none took {SECONDS} s",
      }
    )
  made = environment.describe()
  made["versions"] += f", Pillow {PIL.__version__}"
  file = pathlib.Path(__file__).relative_to(ROOT)
  made["command"] = f"FUZZ_OUT=fuzz.json python -m pytest -m slow {file}"
  return {"rows": rows, **made}


def test_a_few_hundred(tmp_path, tokenizer):
  check(fuzz(1, tmp_path, tokenizer))


@pytest.mark.slow
def test_thousands(tmp_path, tokenizer):
  found = fuzz(20, tmp_path, tokenizer)
  check(found)
  if out := os.environ.get("FUZZ_OUT"):
    (ROOT / out).write_text(json.dumps(report(found), indent=1) + "\n")
