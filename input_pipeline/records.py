"""One example as bytes: a valid safetensors file, so that any language can read it.

Layout: u64 little-endian length of the header, the header as JSON, then raw buffers.
Arrays and bytes are tensors (bytes as U8[n], their keys listed under "bytes" in the
metadata); every other value is JSON under "values" in the metadata, where tuples come
back as tuples. Nothing is ever unpickled.
"""

from collections.abc import Mapping
import json
import struct
from typing import Any

import numpy as np

_DTYPES = {
  "BOOL": np.dtype(bool),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "U16": np.dtype("<u2"),
  "I16": np.dtype("<i2"),
  "U32": np.dtype("<u4"),
  "I32": np.dtype("<i4"),
  "U64": np.dtype("<u8"),
  "I64": np.dtype("<i8"),
  "F16": np.dtype("<f2"),
  "F32": np.dtype("<f4"),
  "F64": np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def encode(example: Mapping[str, Any]) -> bytes:
  """Returns the example as bytes.

  Raises:
    ValueError: an array whose dtype has no code, or a value that JSON cannot hold.
  """
  header: dict[str, Any] = {}
  buffers, offset = [], 0
  plain, binary = {}, []
  for key, value in example.items():
    if isinstance(value, bytes):
      binary.append(key)
      value = np.frombuffer(value, np.uint8)
    if not isinstance(value, np.ndarray):
      plain[key] = value.item() if isinstance(value, np.generic) else value
      continue
    dtype = value.dtype.newbyteorder("<")
    if dtype not in _CODES:
      raise ValueError(f"key {key!r} has dtype {value.dtype}; one of {list(_DTYPES)}")
    buffer = np.ascontiguousarray(value, dtype).tobytes()
    end = offset + len(buffer)
    header[key] = dict(
      dtype=_CODES[dtype], shape=list(value.shape), data_offsets=[offset, end]
    )
    buffers.append(buffer)
    offset = end
  try:
    values = json.dumps(plain, ensure_ascii=False)
  except TypeError as e:
    raise ValueError(
      f"a value of {sorted(plain)} is neither array nor JSON: {e}"
    ) from e
  header["__metadata__"] = dict(values=values, bytes=json.dumps(binary))
  text = json.dumps(header, ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  return b"".join([struct.pack("<Q", len(text)), text, *buffers])


def decode(record: bytes) -> dict[str, Any]:
  """Returns the example of `encode`; its arrays are read-only views of the record.

  Raises:
    ValueError: the record is truncated or is not of this format.
  """
  try:
    (length,) = struct.unpack_from("<Q", record)
    header = json.loads(record[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    example = {
      k: _frozen(v) for k, v in json.loads(metadata.get("values", "{}")).items()
    }
    binary = set(json.loads(metadata.get("bytes", "[]")))
    for key, entry in header.items():
      start, end = (8 + length + o for o in entry["data_offsets"])
      if not 0 <= start <= end <= len(record):
        raise ValueError(f"{key!r} ends at byte {end} of {len(record)}")
      if key in binary:
        example[key] = bytes(record[start:end])
        continue
      flat = np.frombuffer(record[start:end], _DTYPES[entry["dtype"]])
      example[key] = flat.reshape(entry["shape"])
    return example
  except (ValueError, KeyError, TypeError, AttributeError, struct.error) as e:
    raise ValueError(f"not a record of input_pipeline.records: {e}") from e


def _frozen(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(_frozen(v) for v in value)
  if isinstance(value, dict):
    return {k: _frozen(v) for k, v in value.items()}
  return value
