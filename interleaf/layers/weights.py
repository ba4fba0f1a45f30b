"""A checkpoint's tensors by name, checked as they are taken."""

from __future__ import annotations

from collections.abc import Mapping

from interleaf.errors import CorruptCheckpointError
from interleaf.host_tensor import HostTensor


class Weights:
    """A view of a checkpoint below a name prefix."""

    def __init__(self, tensors: Mapping[str, HostTensor], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def under(self, name: str) -> Weights:
        """The tensors whose names go on with `name` and a dot."""
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def has(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def take(self, name: str, *shape: int) -> HostTensor:
        """The tensor `name`.

        Raises:
            CorruptCheckpointError: it is missing, or its shape is not `shape`.
        """
        full_name = self._prefix + name
        try:
            tensor = self._tensors[full_name]
        except KeyError:
            raise CorruptCheckpointError(
                f"The checkpoint has no tensor {full_name!r}, which its configuration calls for."
            ) from None
        if tensor.shape != shape:
            raise CorruptCheckpointError(
                f"The checkpoint's tensor {full_name!r} has shape {list(tensor.shape)}, but its configuration calls "
                f"for {list(shape)}."
            )
        return tensor
