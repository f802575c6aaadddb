"""What `tools.aot_compile` found, as text and as a table. Needs no jax."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
  *("recipe", "chips", "mesh", "batch", "remat", "peak GiB of limit"),
  "MiB sent, by mesh axes",
  *("compute ms", "memory ms", "links ms", "step ms", "examples/s", "MFU"),
)
TWINS = (
  *("recipe", "chips", "model FLOPs", "with empty slots and recomputation"),
  *("products as compiled", "bytes sent", "step bound"),
)
LINES = ("recipe", "chips", "what", "MiB sent", "least", "times")
SHORT = (
  *("recipe", "chips", "batch", "peak GiB of limit", "MiB sent"),
  *("step ms, at least", "examples/s, at most", "MFU, at most"),
)


def text(result: Mapping[str, Any]) -> str:
  """Returns the report of one compiled step."""
  r = result
  mesh = " ".join(f"{axis}={size}" for axis, size in r["mesh"].items())
  slices = f"{r['slices']} x " if r["slices"] > 1 else ""
  total, active = r["parameters"]["total"], r["parameters"]["active"]
  lines = [
    f"{r['name']}, {r['step']} step on {slices}{r['topology']}: "
    f"{r['devices']} devices of kind {r['device_kind']}"
    + "".join(f", {entry}" for entry in r["set"]),
    f"mesh {mesh}; batch {r['batch_size']} in {r['microbatches']} microbatch(es); "
    f"scan {r['scan']}; remat {r['remat']}",
    f"parameters {total / 1e6:,.1f} M, active per token {active / 1e6:,.1f} M",
    f"lowered in {r['seconds']['lower']} s, compiled in {r['seconds']['compile']} s "
    f"({r['seconds']['compile_cpu']} s of processor time)",
    "",
    f"verdict: {r['verdict']}",
  ]
  lines += _memory(r["memory"], r["hbm_limit"]) if "memory" in r else []
  lines += _oom(r["oom"]) if "oom" in r else []
  if "estimate" in r:
    lines += ["", *_collectives(r), "", *_estimate(r)]
  return "\n".join(lines)


def table(results: Sequence[Mapping[str, Any]]) -> str:
  """Returns markdown tables: a row per result, `twins`, and `explained`."""
  rows = []
  for r in results:
    mesh = " ".join(f"{axis} {size}" for axis, size in r["mesh"].items() if size > 1)
    rows.append(
      [
        *(_name(r), _chips(r), mesh, f"{r['batch_size']:,}"),
        r["remat"] if r["step"] == "train" else "-",
        _size(r),
        *_times(r),
      ]
    )
  tables = [_markdown(HEAD, rows), twins(results), explained(results)]
  return "\n\n".join(filter(None, tables))


def twins(results: Sequence[Mapping[str, Any]]) -> str:
  """Returns a table of sparse train steps as multiples of their dense twins', or ""."""
  rows = []
  for r in results:
    if r["step"] != "train" or _dense(r) or "flops" not in r:
      continue
    f, ratios = r["flops"], ["-"] * 4
    row = [_name(r), _chips(r), f"{f['model'] / f['dense']:.3f}"]
    for twin in results:
      if _dense(twin) and _what(twin) == _what(r) and "flops" in twin:
        ratios = _ratios(r, twin)
    row += ratios
    rows.append(row)
  return _markdown(TWINS, rows) if rows else ""


def explained(results: Sequence[Mapping[str, Any]]) -> str:
  """Returns a table of what sparse train steps send, beside the least, or ""."""
  rows = []
  for r in results:
    if r["step"] != "train" or _dense(r) or "lines" not in r:
      continue
    for line in r["lines"]:
      sent, least = line["sent"], line["least"]
      if max(sent, least) >= 2**20 / 2:
        rows.append([_name(r), _chips(r), line["what"], *_beside(sent, least)])
    total = [sum(line[k] for line in r["lines"]) for k in ("sent", "least")]
    rows.append([_name(r), _chips(r), "in all", *_beside(*total)])
  return _markdown(LINES, rows) if rows else ""


def _beside(sent: int, least: int) -> list[str]:
  times = f"{sent / least:.2f}" if least else "-"
  return [f"{sent / 2**20:,.0f}", f"{least / 2**20:,.0f}", times]


def _ratios(r: Mapping[str, Any], twin: Mapping[str, Any]) -> list[str]:
  f, g = r["flops"], twin["flops"]
  both = "estimate" in r and "estimate" in twin
  counted = "compiled" in f and "compiled" in g
  step = r["estimate"]["step"] / twin["estimate"]["step"] if both else 0.0
  return [
    f"{f['executed'] / g['executed']:.3f}",
    f"{f['compiled'] / g['compiled']:.3f}" if counted else "-",
    f"{_sent(r) / _sent(twin):.2f}" if both else "-",
    f"{step:.2f}" if both else "-",
  ]


def short(results: Sequence[Mapping[str, Any]]) -> str:
  """Returns the markdown table of the README: the train steps of sparse models."""
  rows = []
  for r in results:
    if r["step"] != "train" or _dense(r):
      continue
    e = r.get("estimate")
    row = [_name(r), _chips(r), f"{r['batch_size']:,}", _size(r)]
    row += (
      ["-"] * 4
      if not e
      else [
        f"{_sent(r) / 2**20:,.0f}",
        f"{1e3 * e['step']:.1f}",
        f"{e['examples_per_s']:,.0f}",
        f"{e['mfu']:.0%}",
      ]
    )
    rows.append(row)
  return _markdown(SHORT, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _dense(r: Mapping[str, Any]) -> bool:
  return r["parameters"]["total"] == r["parameters"]["active"]


def _what(r: Mapping[str, Any]) -> tuple:
  keys = ("name", "topology", "slices", "step", "scan", "remat", "batch_size")
  return tuple(r[k] for k in keys)


def _name(r: Mapping[str, Any]) -> str:
  how = [s for s in r["set"] if not s.startswith(("batch_size=", "model.scan="))]
  parts = [r["name"]]
  if _dense(r):
    of_experts = [s for s in how if s.startswith("model.moe.")]
    parts += ["dense twin"] if of_experts else []  # else it was never sparse
    how = [s for s in how if s not in of_experts]
  parts += ["eval"] if r["step"] == "eval" else []
  return ", ".join([*parts, *([] if r["scan"] else ["unrolled"]), *how])


def _chips(r: Mapping[str, Any]) -> str:
  return (f"{r['slices']} x " if r["slices"] > 1 else "") + r["topology"]


def _size(r: Mapping[str, Any]) -> str:
  limit = r["hbm_limit"] / 2**30
  needed = r["memory"]["peak"] if "memory" in r else r["oom"]["needed"]
  size = f"{needed / 2**30:.1f} of {limit:.1f}" if needed else f"over {limit:.1f}"
  return size if r["verdict"] == "fits" else f"**does not fit**: {size}"


def _sent(r: Mapping[str, Any]) -> int:
  return sum(c["bytes"] for c in r["collectives"])


def _times(r: Mapping[str, Any]) -> list[str]:
  e = r.get("estimate")
  if not e:
    return ["-"] * 7
  axes: dict[str, int] = {}
  for c in r["collectives"]:
    axes[c["axes"]] = axes.get(c["axes"], 0) + c["bytes"]
  most = sorted(axes.items(), key=lambda item: -item[1])
  return [
    ", ".join(f"{a} {n / 2**20:,.0f}" for a, n in most if n >= 2**20 / 2),
    *(f"{1e3 * e[k]:.1f}" for k in ("compute", "memory", "collectives", "step")),
    f"{e['examples_per_s']:,.0f}",
    f"{e['mfu']:.0%}",
  ]


def _memory(memory: Mapping[str, int], limit: int) -> list[str]:
  parts = ", ".join(f"{k} {gib(v)}" for k, v in memory.items() if k != "peak")
  share = memory["peak"] / limit
  return [
    f"memory per device: peak {gib(memory['peak'])} of {gib(limit)} ({share:.0%})",
    f"  {parts}",
  ]


def _oom(oom: Mapping[str, Any]) -> list[str]:
  if not oom["needed"]:
    return [oom["message"]]
  lines = [f"needed {gib(oom['needed'])}, available {gib(oom['available'])}"]
  for buffer in oom["largest"]:
    lines.append(f"  {gib(buffer['bytes'])}  {buffer['shape']}  {buffer['source']}")
  if not oom["largest"]:
    lines.append("  the compiler did not list its largest buffers")
  return lines


def _collectives(r: Mapping[str, Any]) -> list[str]:
  lines = ["collectives of a step; MiB that one device sends:"]
  for c in r["collectives"]:
    lines.append(
      f"  {c['kind']:<19} {c['axes']:<20} x{c['count']:<5} {c['bytes'] / 2**20:10.2f}"
    )
  lines.append("against the least that any program with this mesh must send (MiB):")
  for line in r["lines"]:
    sent, least = (line[k] / 2**20 for k in ("sent", "least"))
    lines.append(f"  {line['what']:<19} {sent:10.2f} of {least:10.2f}")
  if r["loops_of_unknown_length"]:
    lines.append("  a loop does not tell how often it turns: counted once")
  lines.append("the largest:")
  for c in r["largest_collectives"]:
    size = f"{c['bytes'] * c['times'] / 2**20:10.2f}"
    how = "" if c["asynchronous"] else " (synchronous)"
    axes = "+".join(c["axes"])
    lines.append(f"  {size}  {c['kind']} {axes} {c['shape']} x{c['times']}{how}")
    lines.append(f"              {c['source'][-100:]}")
  return lines


def _estimate(r: Mapping[str, Any]) -> list[str]:
  e, f = r["estimate"], r["flops"]
  lines = [
    f"FLOPs of a step: model {f['model']:.3e}, executed {f['executed']:.3e}"
    f", products as compiled {f['compiled']:.3e}"
    + (f", by the compiler {f['unrolled']:.3e}" if "unrolled" in f else ""),
    f"bound: compute {1e3 * e['compute']:.2f} ms, memory {1e3 * e['memory']:.2f} ms "
    f"({gib(r['hbm_traffic'])}), collectives {1e3 * e['collectives']:.2f} ms, of these "
    f"exposed {1e3 * e['exposed']:.2f} ms",
    f"step >= {1e3 * e['step']:.2f} ms = max(compute, memory) + exposed, or all "
    f"collectives; mostly {e['limit']}",
    f"examples/s <= {e['examples_per_s']:,.0f}, MFU <= {e['mfu']:.1%}",
  ]
  return lines


def gib(size: float) -> str:
  """Returns bytes as GiB, or as MiB below one."""
  return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
