"""What runs in vLLM's worker processes. Imports only what they need."""

from __future__ import annotations

from collections.abc import Iterator

from safetensors import safe_open
from torch import Tensor

from verl.workers.weight_sync.packing import checksum, pack_weights


class WeightReceiver:
    """Mixed into vLLM's worker; its methods are called with `collective_rpc`."""

    def checksum_of_file(self, path: str) -> int:
        """`packing.checksum` of the weights in a safetensors file, as this process reads them."""
        return checksum(pack_weights(dict(_weights(path))))

    def reload_from_file(self, path: str) -> None:
        """Replace all weights in place, converting and re-packing them as vLLM needs them."""
        self.model_runner.reload_weights(weights_iterator=_weights(path))


def _weights(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  safe_open is not a mapping
            yield name, file.get_tensor(name)
