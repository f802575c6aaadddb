"""docs/choose_a_loss.md says of temperatures and memory what the losses have."""

import dataclasses
import pathlib
import re

from benchmarks import loss_inputs
from model import catalogue

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/choose_a_loss.md"


def section(title):
  """The names of losses in each paragraph or item of a section, as sets."""
  text = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
  known = set(loss_inputs.names())
  parts = re.split(r"\n\n|\n- |^- ", text)
  return [set(re.findall(r"`(\w+)`", p)) & known for p in parts if p.strip()]


def with_field(field, *values):
  """The losses that have the field, by default one of the values if any are given."""
  found = set()
  for name in loss_inputs.names():
    cls = catalogue.find(loss_inputs.PACKAGE, name, "Loss")
    found |= {
      name
      for f in dataclasses.fields(cls)
      if f.name == field and (not values or f.default in values)
    }
  return found


def test_which_losses_learn_their_temperature():
  learn, keep, always, others, units = section("Temperature")
  assert learn == with_field("learned", True)
  assert keep == with_field("learned", False)
  # Without that option: whatever has parameters of its own that start from numbers.
  assert always == with_field("adaptive", True) | (with_field("bias") | {"pcme"})
  assert others <= with_field("temperature") - with_field("learned")
  scaled = with_field("scale") - with_field("scale", 1.0)  # barlow's is of the whole
  assert units == scaled | {"kernel_infonce", "hydra"}


def test_which_losses_have_no_strategies():
  (named,) = section("Memory")
  assert named == set(loss_inputs.names()) - with_field("strategy")
