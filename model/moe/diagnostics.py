"""The auxiliary terms of one sparse layer: weighted losses and metrics."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model.moe import aux
from model.moe.config import MoeConfig, split
from model.moe.router import Routing
from model.types import Array, Metrics

DEAD = 0.01  # of the mean load: an expert below it learns next to nothing


def losses(
  config: MoeConfig,
  routing: Routing,
  mask: Array,
  masks: Mapping[str, Array],
) -> Metrics:
  """Returns `losses/moe_<name>` f32[]: each enabled loss, times its share.

  The share is config.weight * own weight / number of enabled losses, so that the terms
  add up to weight * mean. Losses of absent modalities are left out of the sum; the
  number stays that of the config, lest a term's weight depend on the batch.

  Args:
    config: names the enabled losses; the others are not computed.
    routing: what the router decided for g groups of s tokens.
    mask: bool[g, s], the real tokens.
    masks: modality -> bool[g, s], its real tokens; the modalities that are present.
  """
  logits, noisy, gates = routing.logits, routing.noisy, routing.gates
  least = dict(config.min_experts)
  out = {}
  for name, weight in config.losses:
    kind, modality = split(name)
    if modality and modality not in masks:
      continue
    if kind == "importance":
      value = aux.importance(gates, mask, config.statistics)
    elif kind == "load":
      value = aux.load(
        logits,
        noisy,
        mask,
        k=config.k,
        sigma=config.noise / config.experts,
        statistics=config.statistics,
      )
    elif kind == "gshard":
      value = aux.gshard(jax.nn.softmax(noisy), mask, config.statistics)
    elif kind == "z":
      value = aux.z(logits, mask)
    elif kind == "local_entropy":
      value = aux.local_entropy(gates, masks[modality])
    else:
      value = aux.global_entropy(
        gates, masks[modality], least[modality], config.statistics
      )
    out[f"losses/moe_{name}"] = value * (config.weight * weight / len(config.losses))
  return out


def metrics(routing: Routing, mask: Array, masks: Mapping[str, Array]) -> Metrics:
  """Returns how the tokens of each modality were routed, without gradients.

  `effective_experts/<m>` is exp(H(mean gate)), `token_entropy/<m>` the mean entropy of
  a token's gates in nats, `served/<m>` the share of its claims that was met (choices
  that got a slot; of expert choice, tokens that any expert took; else 1), `load/<m>`
  f32[e] the choices that each expert served, per token of the modality. Of all
  modalities together, `router_logit_scale` is the largest magnitude of a logit and
  `dead_experts` the number of experts with less than DEAD of the mean load. A modality
  without real tokens has 0 everywhere but 1 effective expert.

  Args:
    routing: what the router decided for g groups of s tokens.
    mask: bool[g, s], the real tokens.
    masks: modality -> bool[g, s].
  """
  routing = jax.lax.stop_gradient(routing)
  token_entropy = aux.entropy(routing.gates)
  scale = jnp.max(jnp.abs(routing.logits), where=mask[..., None], initial=0.0)
  load = jnp.sum(routing.load, axis=(0, 1))
  dead = jnp.sum(load < DEAD * jnp.mean(load), dtype=jnp.float32)
  out = {"router_logit_scale": scale, "dead_experts": dead}
  for name, here in masks.items():
    count = jnp.maximum(jnp.sum(here, dtype=jnp.float32), 1.0)

    def mean(values, here=here, count=count):
      keep = here.reshape(here.shape + (1,) * (values.ndim - 2))
      return jnp.sum(jnp.where(keep, values, 0.0), axis=(0, 1)) / count

    out[f"effective_experts/{name}"] = jnp.exp(aux.entropy(mean(routing.gates)))
    out[f"token_entropy/{name}"] = mean(token_entropy)
    out[f"served/{name}"] = mean(routing.served)
    out[f"load/{name}"] = mean(routing.load)
  return out
