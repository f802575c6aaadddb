"""A method that the config does not name costs nothing: no import, no instruction."""

import json
import os
import subprocess
import sys

from tests.entry.runs import ROOT

PROGRAM = """
import importlib, json, sys
import jax, numpy as np
from configs import base
from model import catalogue
from training import setup as setup_lib

KINDS = {"losses": "Loss", "objectives": "Objective", "heads": "Head", "views": "View"}

def imported():
  return sorted(
    name
    for name in sys.modules
    for kind, cls in KINDS.items()
    if name.startswith(f"model.{kind}.") and hasattr(sys.modules[name], cls)
  )

def lowered():
  config = base.get_config()
  config.mesh.data = 1
  objective = setup_lib.build(config, devices=jax.devices()[:1]).objective
  (_, _, _, loss), = objective.terms
  x = jax.ShapeDtypeStruct((8, 4), np.float32)
  def f(params, z):
    return loss(params, z, {})[0]
  params = jax.eval_shape(loss.init, jax.random.key(0))
  step = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
  return step.lower(params, {"image": x, "text": x}).as_text()

alone = imported()
text = lowered()
used = imported()
for kind in KINDS:
  for name in catalogue.names(f"model.{kind}"):
    importlib.import_module(f"model.{kind}.{name}")
every = imported()
jax.clear_caches()
print(json.dumps([alone, used, len(every), text == lowered(), len(text)]))
"""


def test_a_loss_that_the_config_does_not_name_costs_nothing():
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  alone, used, every, same, size = json.loads(done.stdout.splitlines()[-1])
  assert alone == []  # importing the setup reads no file of the catalogue
  assert used == ["model.losses.infonce", "model.objectives.contrastive"]
  assert every > 20 and size > 1000
  assert same
