"""How a source or a transform says that an example is unusable."""


class Drop(Exception):
  """Raised for an example that cannot be used; it is replaced and counted by reason.

  The reason is a short phrase without the example's own details, such as
  "truncated image", because `Loader.dropped` counts examples by it.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason
