"""A stand-in for cuDNN's attention, which runs on GPUs alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.layers import attention


class Call(NamedTuple):
  """How it was called: the lengths, and what says which keys a query may see."""

  queries: int
  keys: int
  causal: bool
  masked: bool  # by a matrix
  limited: bool  # by a number of keys


def stand_in(monkeypatch) -> list[Call]:
  """Puts it in the place of `jax.nn.dot_product_attention`, and returns its calls.

  It asserts what a GPU needs in order to train, and computes the same. Where that hangs
  on values, which may be traced, all of the result is NaN if they are not as they must.
  """
  calls: list[Call] = []

  def cudnn(
    q,
    k,
    v,
    *,
    mask,
    is_causal,
    implementation,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
  ):
    (b, queries), keys = q.shape[:2], k.shape[1]
    limits = query_seq_lengths, key_value_seq_lengths
    limited = any(x is not None for x in limits)
    calls.append(Call(queries, keys, is_causal, mask is not None, limited))
    assert implementation == "cudnn"
    # JAX refuses any odd length while training, and a mask without a row per query.
    assert queries % 2 == keys % 2 == 0, (queries, keys)
    allowed, fine = mask, jnp.bool_(True)
    if mask is not None:
      assert (mask.shape, mask.dtype) == ((b, 1, queries, keys), jnp.bool_)
      seen = jnp.tril(mask) if is_causal else mask
      fine = seen.any(axis=-1).all()  # else NaN in the gradient
    if limited:
      assert not is_causal and mask is None
      assert {(x.shape, x.dtype) for x in limits} == {((b,), jnp.dtype("int32"))}
      # A query that does not count is left as memory happened to be.
      every, some = limits
      fine = (every == queries).all() & (some >= 1).all() & (some <= keys).all()
      allowed = jnp.arange(keys)[None, None, None] < some[:, None, None, None]
    y = attention._dense(q, k, v, allowed, is_causal, "xla")
    return jnp.where(fine, y, jnp.asarray(jnp.nan, y.dtype))

  monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
  return calls
