"""Arrays out of .npy files that nobody has checked."""

import ast
import math
import struct

import numpy as np

from input_pipeline.drop import Drop

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # NumPy's own limit
_KINDS = "biuf"  # numbers; objects would be unpickled


def array(data: bytes, what: str) -> np.ndarray:
  """Returns the array of a .npy file, a read-only view of its bytes.

  `np.load` would allocate what the header claims before it reads on.

  Args:
    data: the file.
    what: it is said to be, for the reasons.

  Raises:
    Drop: "not a <what>", "broken <what>" or "truncated <what>".
  """
  if not data.startswith(MAGIC):
    raise Drop(f"not a {what}")
  try:
    wide = data[6] > 1  # of version 1, lengths have two bytes
    (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
    start = (12 if wide else 10) + length
    if length > _MAX_HEADER:
      raise Drop(f"broken {what}")
    header = ast.literal_eval(data[start - length : start].decode("latin1"))
    dtype, shape = np.dtype(header["descr"]), tuple(map(int, header["shape"]))
    if dtype.kind not in _KINDS or min(shape, default=0) < 0:
      raise Drop(f"not a {what}")
    count = math.prod(shape)
    if count * dtype.itemsize > len(data) - start:
      raise Drop(f"truncated {what}")
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape, order="F" if header["fortran_order"] else "C")
  except Drop:
    raise
  except Exception as e:  # the header is a dict, or anything at all
    raise Drop(f"broken {what}") from e
