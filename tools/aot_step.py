"""Compiles a recipe's real step for described devices and measures what came out."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
from jax import numpy as jnp

from evaluators import context as context_lib
from model.encoders import config as encoders
from model.encoders import count
from sharding import mesh as meshes
from tools import (
  aot_least,
  hlo_collectives,
  hlo_flops,
  hlo_text,
  hlo_traffic,
  roofline,
)
from training import chips
from training import setup as setup_lib
from training import step as step_lib

LARGEST = 12  # collectives, and buffers of a program that does not fit
# They make no array: names, or programs whose instructions do.
_NAMES = ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "call")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)\s?([KMGT]?)i?B?"
_TOTALS = (
  re.compile(rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)"),
  re.compile(rf"Used {_SIZE} of {_SIZE} \w+"),
)
_BUFFER = re.compile(rf"^\s*\d+\. Size: {_SIZE}$(.*?)(?:={{10,}}|\Z)", re.M | re.S)
_FIELD = re.compile(r"^\s*(Shape|Operator|Allocation type): (.*)$", re.M)


def lower(setup: setup_lib.Setup, evaluate: bool = False) -> Any:
  """Returns the lowered train step, or with `evaluate` the embedding step, of a recipe.

  Nothing is allocated and no data is read: shapes come from the recipe.
  """
  split = meshes.batch_sharding(setup.mesh)
  spec = setup.batch_spec(train=not evaluate)
  b = (setup.config.batch_size,)
  spec["id"] = jax.ShapeDtypeStruct(b, jnp.int32)
  if evaluate:
    spec["valid"] = jax.ShapeDtypeStruct(b, jnp.bool_)
  batch = {
    k: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=split) for k, s in spec.items()
  }
  with jax.set_mesh(setup.mesh):
    state = setup.abstract_state()
    if not evaluate:
      return setup.train_step().lower(state, batch)
    encode = step_lib.eval_encode(setup.towers, setup.objective)
    embed = context_lib.embedder(encode)
    return jax.jit(embed).lower(state.params, batch)


def measure(
  config: Any, devices: Sequence[Any], *, evaluate: bool = False, hlo: str | None = None
) -> dict[str, Any]:
  """Returns all that can be said of a step before it runs, as plain JSON values.

  Args:
    config: a recipe, its mesh and all else as it shall be.
    devices: described devices, all of one kind.
    evaluate: the embedding step instead of the train step.
    hlo: a file for the text of the compiled program.

  Raises:
    ValueError: a config that does not fit itself or the devices, or a kind of device
      that `training.chips` does not know.
  """
  kind = devices[0].device_kind
  chip = chips.find(kind)
  if chip is None or not chip.hbm:
    known = [c.kind for c in chips.CHIPS if c.hbm]
    raise ValueError(f"device kind {kind!r}: expected one of {known}, the described")
  setup = setup_lib.build(config, devices)
  started = time.monotonic()
  lowered = lower(setup, evaluate)
  seconds = {"lower": round(time.monotonic() - started, 1)}
  started, worked = time.monotonic(), time.process_time()
  result: dict[str, Any] = {
    "name": config.name,
    "step": "eval" if evaluate else "train",
    "device_kind": kind,
    "devices": len(devices),
    "mesh": {k: int(v) for k, v in setup.mesh.shape.items()},
    "batch_size": config.batch_size,
    "microbatches": config.microbatches,
    "scan": config.model.scan,
    "remat": config.model.remat,
    "hbm_limit": chip.hbm,
    "seconds": seconds,
  }
  table = count.parameter_table(config.model)
  result["parameters"] = {"total": table.total, "active": table.active}
  try:
    compiled, text = compile_to_text(lowered)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return result | {"verdict": "does not fit", "oom": parse_oom(str(e))}
  finally:
    seconds["compile"] = round(time.monotonic() - started, 1)
    seconds["compile_cpu"] = round(time.process_time() - worked, 1)  # all threads
  used, module = memory(compiled), hlo_text.parse(text)
  result |= {"verdict": "fits", "memory": used, "flops": flops(config, evaluate)}
  if used["peak"] > chip.hbm:  # the GPU compiler does not refuse
    oom = {"needed": used["peak"], "available": chip.hbm, "largest": largest(module)}
    result |= {"verdict": "does not fit", "oom": oom}
  if chip.torus and not config.model.scan and config.microbatches == 1:
    # One program of one device; loops would be counted once, calls of cuBLAS not.
    cost = compiled.cost_analysis() or {}
    result["flops"]["unrolled"] = cost.get("flops", 0.0) * len(devices)
  if hlo:
    pathlib.Path(hlo).write_text(text)
  return result | _of_text(module, setup, chip, result)


def compile_to_text(lowered: Any) -> tuple[Any, str]:
  """Returns the compiled program and its text, as the compiler itself writes it down.

  `compiled.as_text()` reads the program back first, and JAX's reader refuses some that
  the TPU compiler makes: those of sparse steps for v5p.

  Raises:
    jax.errors.JaxRuntimeError: it does not compile; RESOURCE_EXHAUSTED: nor fit.
  """
  with tempfile.TemporaryDirectory() as folder:
    dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    compiled = lowered.compile(compiler_options=dump)
    written = pathlib.Path(folder).glob("*after_optimizations.txt")
    largest = max(written, key=lambda path: path.stat().st_size, default=None)
    # Nothing is written of a program that comes from the compilation cache.
    return compiled, largest.read_text() if largest else compiled.as_text()


def memory(compiled: Any) -> dict[str, int]:
  """Returns bytes on one device: arguments, output, temporaries, and all at once."""
  m = compiled.memory_analysis()
  parts = {
    "argument": m.argument_size_in_bytes,
    "output": m.output_size_in_bytes,
    "alias": m.alias_size_in_bytes,
    "temp": m.temp_size_in_bytes,
    "code": m.generated_code_size_in_bytes,
  }
  # An output that takes the place of a donated argument needs none of its own.
  peak = parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]
  return parts | {"peak": peak + parts["code"]}


def flops(config: Any, evaluate: bool = False) -> dict[str, float]:
  """Returns FLOPs of a step on all devices: useful ones, and those that are executed.

  Executed are, besides, the experts' empty slots and what the backward pass computes
  again: with remat "full" a forward pass, with "dots" the products of two activations,
  and with microbatches another forward pass. "dense" are the useful
  ones of the twin with a dense MLP in every block, of equal active FLOPs but for the
  router's.
  """
  model, b, train = config.model, config.batch_size, not evaluate
  each = count.flops_per_example(model, capacity=True, train=train)
  slots = sum(each.values()) * b
  useful = sum(count.flops_per_example(model, train=train).values()) * b
  twin = config.copy_and_resolve_references()
  twin.model.moe.update(dict(every=0, layers=()))
  dense = sum(count.flops_per_example(twin.model, train=train).values()) * b
  if evaluate:
    return {"model": useful, "executed": slots, "dense": dense}
  again = {"full": slots, "dots": _activations(model, b)}.get(model.remat, 0.0)
  again += slots if config.microbatches > 1 else 0
  return {"model": 3 * useful, "executed": 3 * slots + again, "dense": 3 * dense}


def parse_oom(text: str) -> dict[str, Any]:
  """Returns {needed, available, largest buffers} of the compiler's RESOURCE_EXHAUSTED.

  Bytes; None and [] where the report does not tell.
  """
  totals = next((m for p in _TOTALS if (m := p.search(text))), None)
  largest = []
  for m in _BUFFER.finditer(text):
    fields = dict(_FIELD.findall(m[3]))
    operator = re.search(r'op_name="((?:[^"\\]|\\.)*)"', fields.get("Operator", ""))
    largest.append(
      {
        "bytes": _bytes(m[1], m[2]),
        "shape": fields.get("Shape", ""),
        "source": operator[1].replace("\\", "") if operator else "",
        "kind": fields.get("Allocation type", ""),
      }
    )
  return {
    "needed": _bytes(totals[1], totals[2]) if totals else None,
    "available": _bytes(totals[3], totals[4]) if totals else None,
    "largest": largest[:LARGEST],
    "message": text.splitlines()[0][:400],
  }


def largest(module: hlo_text.Module) -> list[dict[str, Any]]:
  """Returns the largest arrays that a program makes, as `parse_oom` has buffers."""
  made = [
    (array, i)
    for run in hlo_text.runs(module)
    for i in module.computations[run.computation].values()
    if i.opcode not in _NAMES and not i.opcode.endswith("-done")
    for array in i.arrays
  ]
  made.sort(key=lambda pair: -pair[0].bytes)
  return [
    {
      "bytes": array.bytes,
      "shape": f"{array.dtype}{list(array.dims)}".replace(" ", ""),
      "source": hlo_text.source(i),
      "kind": i.opcode,
    }
    for array, i in made[:LARGEST]
  ]


def _of_text(
  module: hlo_text.Module,
  setup: setup_lib.Setup,
  chip: chips.Chip,
  result: Mapping[str, Any],
) -> dict[str, Any]:
  work = result["flops"]
  devices = list(setup.mesh.devices.flat)
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  found = hlo_collectives.find(module, dict(setup.mesh.shape), slices)
  links = (
    roofline.Links.of(devices, chip.torus)
    if chip.torus
    else roofline.Switch.of(devices)
  )
  traffic = hlo_traffic.total(module)
  work["compiled"] = hlo_flops.total(module) * len(devices)
  # What the compiler did not do again is not counted, but nor is what kernels do.
  done = work["executed" if hlo_flops.has_kernels(module) else "compiled"]
  bound = roofline.estimate(done / len(devices), traffic, found, chip, links)
  most = sorted(found, key=lambda c: -c.total)[:LARGEST]
  keep = ("kind", "axes", "shape", "times", "bytes", "asynchronous", "source")
  return {
    "collectives": [
      {"kind": kind, "axes": axes, "count": n, "bytes": size}
      for (kind, axes), (n, size) in hlo_collectives.by_kind_and_axes(found).items()
    ],
    "largest_collectives": [{k: getattr(c, k) for k in keep} for c in most],
    "lines": aot_least.lines(setup, found, result["step"]),
    "loops_of_unknown_length": any(not c.known for c in found),
    "hbm_traffic": traffic,
    "estimate": {
      **dataclasses.asdict(bound),
      "step": bound.step,
      "limit": bound.limit,
      "examples_per_s": setup.config.batch_size / bound.step,
      "mfu": work["model"] / bound.step / len(devices) / chip.flops,
    },
  }


def _activations(model: Any, b: int) -> float:
  """FLOPs of attention's scores and sums, forward."""
  return b * sum(count.attention_flops(m) for m in encoders.modalities(model))


def _bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])
