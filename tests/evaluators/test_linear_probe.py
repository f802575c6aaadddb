"""Logistic regression on frozen features, against scikit-learn's."""

import dataclasses

import jax
import numpy as np
import pytest

from evaluators import features, fit, linear_probe
from sharding import mesh as meshes
from tests.evaluators.test_probe import CLASSES, D, M, data


def labelled(x, y):
  return features.Labelled(x, y, np.arange(len(y), dtype=np.int32))


@pytest.fixture(scope="module")
def alone():
  return meshes.make(dict(data=1), jax.devices()[:1])


@pytest.mark.parametrize("l2", [1e-2, 1e-3])
def test_lbfgs_is_scikit_learns(alone, l2):
  linear = pytest.importorskip("sklearn.linear_model")
  x, y, queries, _ = data()
  model = linear.LogisticRegression(C=1 / (l2 * M), tol=1e-9, max_iter=5000)
  model.fit(x.astype(np.float64), y)  # of floats it would make floats
  got = fit.lbfgs(labelled(x, y), CLASSES, l2, alone)
  # scikit-learn's biases sum to anything: compare what is predicted.
  logits = queries @ got["w"] + got["b"]
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(p, model.predict_proba(queries), atol=2e-5)
  predicted = fit.predict(
    fit.linear, got, labelled(queries, model.predict(queries)), alone
  )
  np.testing.assert_array_equal(predicted, model.predict(queries))


def test_one_device_fits_what_eight_fit(alone):
  x, y, _, _ = data()
  mesh = meshes.make(dict(data=4, fsdp=2))
  one, eight = (fit.lbfgs(labelled(x, y), CLASSES, 1e-2, m) for m in (alone, mesh))
  np.testing.assert_allclose(one["w"], eight["w"], atol=1e-4)


def test_sgd_comes_to_the_same(alone):
  x, y, _, _ = data()
  want = fit.lbfgs(labelled(x, y), CLASSES, 1e-2, alone)
  options = dict(rule="sgd", l2=1e-2, epochs=200, batch_size=M)
  start = fit.zeros(D, CLASSES)
  got = fit.by_steps(fit.linear, start, labelled(x, y), alone, lr=2.0, **options)
  np.testing.assert_allclose(got["w"], want["w"], atol=2e-3)


def test_minibatches_are_whole_and_of_each_row_once():
  rows = list(fit.minibatches(10, 4, 3, seed=0))
  assert [len(r) for r in rows] == [4] * 6
  for first in (0, 2, 4):
    assert len(np.unique(np.concatenate(rows[first : first + 2]))) == 8
  assert next(fit.minibatches(3, 4, 1, seed=0)).shape == (3,)


def test_the_penalty_is_chosen_on_what_was_left_out(context, alone):
  context = dataclasses.replace(context, mesh=alone)
  x, y, queries, truth = data(spread=0.3)
  evaluator = linear_probe.Evaluator(context, l2=(1e3, 1e-3))
  predicted, chosen = evaluator._predict(
    "lbfgs", labelled(x, y), labelled(queries, truth)
  )
  assert chosen == {"l2": 1e-3}  # the other one predicts the most frequent class
  assert (predicted == truth).mean() > 0.8
  # A validation split decides instead, where there is one.
  usual = np.full(5, np.bincount(y).argmax(), np.int32)
  other = labelled(x[y == usual[0]][:5], usual)
  evaluator = linear_probe.Evaluator(context, l2=(1e3, 1e-3), validation="validation")
  _, chosen = evaluator._predict(
    "lbfgs", labelled(x, y), labelled(queries, truth), other
  )
  assert chosen == {"l2": 1e3}


def test_evaluator(context, params, alone):
  context = dataclasses.replace(context, mesh=alone)
  options = dict(solvers=("lbfgs", "sgd"), l2=(1e-3,), lr=(3.0,), epochs=30)
  got = linear_probe.Evaluator(context, bootstrap=20, **options).run(params)
  assert got["group_n"] == 36
  for solver in linear_probe.SOLVERS:
    assert got["group_majority"] < got[f"group_{solver}_top1"] <= 1
    low, high = (got[f"group_{solver}_top1_{end}"] for end in ("low", "high"))
    assert low <= got[f"group_{solver}_top1"] <= high
    assert got[f"group_{solver}_l2"] == 1e-3
  assert context.encode.traced == 1


def test_errors(context, params):
  with pytest.raises(ValueError, match=r"solvers: \['newton'\]"):
    linear_probe.Evaluator(context, solvers=("newton",))
  with pytest.raises(ValueError, match="must be some numbers"):
    linear_probe.Evaluator(context, l2=())
  with pytest.raises(ValueError, match=r"linear_probe\.labels: .*no label 'kind'"):
    linear_probe.Evaluator(context, labels=("kind",)).run(params)
