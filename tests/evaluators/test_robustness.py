"""An evaluator on damaged images: which transforms it sees, and what is reported."""

import pytest

from evaluators import robustness
from input_pipeline import pipeline


@pytest.fixture
def seen(context, split, monkeypatch):
  """The corruption of each evaluation; the damage is a wrong text for each image."""
  found = []
  whole = split.batches

  def batches(config, **options):
    steps = dict(config.data.eval_transforms)
    found.append(steps.get("corrupt"))
    out = whole(config, **options)
    shift = steps["corrupt"]["severity"] if "corrupt" in steps else 0
    return [b | {"text": b["text"][[*range(shift, 16), *range(shift)]]} for b in out]

  monkeypatch.setattr(pipeline, "eval_batches", batches)
  context.config.data.eval_transforms = (("resize", {}), ("normalize", {}))
  return found


def test_clean_damaged_and_what_is_left(context, params, seen):
  options = dict(kinds=("blur", "jpeg"), severities=(1, 5), metrics=("i2t_r1",))
  got = robustness.Evaluator(context, **options).run(params)
  settings = [dict(kind=k, severity=s) for k in ("blur", "jpeg") for s in (1, 5)]
  assert seen == [None, *settings]
  assert got["clean/i2t_r1"] == 1.0
  each = [got[f"{s['kind']}_{s['severity']}/i2t_r1"] for s in settings]
  assert max(each) < 0.5
  assert got["mean/i2t_r1"] == got["retained/i2t_r1"] == pytest.approx(sum(each) / 4)
  assert context.encode.traced == 1  # one program for all
  assert context.config.data.eval_transforms == (("resize", {}), ("normalize", {}))


def test_damage_comes_before_normalize(context, seen):
  new = robustness.damaged(context.config, "blur", 2)
  assert [name for name, _ in new.data.eval_transforms] == [
    "resize",
    "corrupt",
    "normalize",
  ]


def test_errors(context, params, seen):
  with pytest.raises(ValueError, match=r"\['blurr'\]: did you mean blur"):
    robustness.Evaluator(context, kinds=("blurr",))
  with pytest.raises(ValueError, match=r"severities = \(6,\)"):
    robustness.Evaluator(context, severities=(6,))
  with pytest.raises(ValueError, match="limits: did you mean limit"):
    robustness.Evaluator(context, options=dict(limits=3))
  with pytest.raises(ValueError, match=r"metrics \['i2t_r2'\] are none of retrieval's"):
    robustness.Evaluator(context, metrics=("i2t_r2",)).run(params)
  context.config.data.eval_transforms = (("resize", {}),)
  with pytest.raises(ValueError, match=r"before 'normalize', .*\['resize'\]"):
    robustness.Evaluator(context)
