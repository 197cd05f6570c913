"""Places for workers: Ray placement groups, one a node."""

from __future__ import annotations

import ipaddress
import logging
import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

from verl.single_controller.base import ResourcePool
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_RAY_RESOURCE = {"cuda": "GPU", "npu": "NPU"}
_PLACEMENT_NOTICE_S = 10
_PLACEMENT_TIMEOUT_S = 300


@dataclass(frozen=True)
class Place:
    """Where one worker runs: a bundle of a placement group, and the worker's place on its node."""

    group: PlacementGroup
    bundle: int
    node_id: str
    local_rank: int
    local_world_size: int


class RayResourcePool(ResourcePool):
    """Reserves the same resources for each of its places, and shares them between worker groups."""

    def __init__(
        self,
        process_on_nodes: list[int] | None = None,
        use_gpu: bool = True,
        name_prefix: str | None = None,
        max_colocate_count: int = 10,
        apart: bool = False,
    ) -> None:
        """Nothing is reserved before the first worker group asks.

        Args:
            process_on_nodes: number of workers on each node.
            use_gpu: a place is one accelerator and `max_colocate_count` CPUs; without, one CPU.
            name_prefix: of the placement groups' names.
            max_colocate_count: worker groups that may share the pool; each gets an equal part of
                a place.
            apart: no two entries of `process_on_nodes` share a node.
        """
        super().__init__(process_on_nodes, max_colocate_count)
        self.use_gpu = use_gpu
        self.apart = apart
        self.name_prefix = name_prefix or f"verl_pool_{uuid.uuid4().hex[:6]}"
        self.pgs: list[PlacementGroup] | None = None

    def accelerator(self, device_name: str | None = None) -> str | None:
        """Ray's name of the accelerator that a place holds, or None on CPUs."""
        if not self.use_gpu or device_name == "cpu":
            return None
        return _RAY_RESOURCE[device_name or "cuda"]

    def _bundle(self, device_name: str | None) -> dict[str, float]:
        accelerator = self.accelerator(device_name)
        if accelerator is None:
            return {"CPU": 1}
        return {"CPU": self.max_colocate_count, accelerator: 1}

    def share(self, device_name: str | None) -> dict[str, float]:
        """The part of a place that one worker gets."""
        # Ray counts in 1e-4; rounding down keeps the sum of the parts within the whole.
        return {
            name: math.floor(1e4 * amount / self.max_colocate_count) / 1e4
            for name, amount in self._bundle(device_name).items()
        }

    def get_placement_groups(
        self, strategy: str = "STRICT_PACK", device_name: str | None = None
    ) -> list[PlacementGroup]:
        """Reserve the places, once; one placement group a node, in the order of the nodes' IPs.

        Raises:
            UserError: the cluster cannot provide them.
        """
        if self.pgs is None:
            bundle = self._bundle(device_name)
            groups: list[PlacementGroup] = []
            for node, count in enumerate(self.store):
                taken = {_node(group) for group in groups} if self.apart else ()
                groups.append(
                    placement_group(
                        bundles=[dict(bundle) for _ in range(count)],
                        strategy=strategy,
                        name=f"{self.name_prefix}:{node}",
                        bundle_label_selector=[_none_of(taken) for _ in range(count)],
                    )
                )
                self._wait(groups, bundle)
            self.pgs = sort_placement_group_by_node_ip(groups)
        return self.pgs

    def _wait(self, groups: list[PlacementGroup], bundle: dict[str, float]) -> None:
        """For the last one."""
        request = f"{self.store} workers a node with {bundle} each"
        if self.apart:
            request += f" on {len(self.store)} different nodes"
        if groups[-1].wait(_PLACEMENT_NOTICE_S):
            return
        logger.warning("waiting for room for %s; %s", request, _room())
        if groups[-1].wait(_PLACEMENT_TIMEOUT_S):
            return
        for group in groups:
            ray.util.remove_placement_group(group)
        raise UserError(
            f"cannot place {request} within {_PLACEMENT_TIMEOUT_S} s: {_room()}; "
            "ask for fewer workers, free resources or add nodes"
        )

    def places(self, strategy: str, device_name: str | None) -> list[Place]:
        """All places in rank order."""
        bundles = []
        for group in self.get_placement_groups(strategy, device_name=device_name):
            nodes = placement_group_table(group)["bundles_to_node_id"]
            bundles += [(group, index, nodes[index]) for index in range(group.bundle_count)]
        size_of_node = Counter(node for _, _, node in bundles)
        next_rank: dict[str, int] = defaultdict(int)
        places = []
        for group, index, node in bundles:
            places.append(Place(group, index, node, next_rank[node], size_of_node[node]))
            next_rank[node] += 1
        return places


def _node(group: PlacementGroup) -> str:
    """That of its first place."""
    return placement_group_table(group)["bundles_to_node_id"][0]


def _none_of(nodes: Collection[str]) -> dict[str, str]:
    """Ray's label selector of all other nodes. A space in it would become part of an id."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"} if nodes else {}


def _room() -> str:
    nodes = sum(node["Alive"] for node in ray.nodes())
    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = [kind for kind in ("CPU", *_RAY_RESOURCE.values()) if kind in total]
    rooms = ", ".join(f"{free.get(kind, 0):g} of {total[kind]:g} {kind}" for kind in kinds)
    return f"free on {nodes} nodes are {rooms}"


def _ip_sort_key(address: str) -> tuple:
    """By number, so that 10.0.0.9 comes before 10.0.0.10; names come after IPv4 addresses."""
    try:
        return (0, int(ipaddress.IPv4Address(address)), address)
    except ValueError:
        return (1, 0, address)


def sort_placement_group_by_node_ip(groups: list[PlacementGroup]) -> list[PlacementGroup]:
    """In the order of the nodes' IPs, so that a restarted run gives every node its old ranks."""
    ip_of_node = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}

    def key(group: PlacementGroup) -> tuple:
        return _ip_sort_key(ip_of_node[_node(group)])

    return sorted(groups, key=key)
