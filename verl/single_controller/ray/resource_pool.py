"""Places for workers: Ray placement groups, one a node."""

from __future__ import annotations

import ipaddress
import logging
import math
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate

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
        detached: bool = False,
        accelerator_type: str | None = None,
    ) -> None:
        """Nothing is reserved before the first worker group asks.

        Args:
            process_on_nodes: number of workers on each node.
            use_gpu: a place is one accelerator and `max_colocate_count` CPUs; without, one CPU.
            name_prefix: of the placement groups' names.
            max_colocate_count: worker groups that may share the pool; each gets an equal part of
                a place.
            detached: keep the reservation when the driver ends.
            accelerator_type: custom Ray resource that a node must have, e.g. ``"A100"``.
        """
        super().__init__(process_on_nodes, max_colocate_count)
        self.use_gpu = use_gpu
        self.name_prefix = name_prefix or f"verl_pool_{uuid.uuid4().hex[:6]}"
        self.detached = detached
        self.accelerator_type = accelerator_type
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
        bundle = {"CPU": self.max_colocate_count, accelerator: 1}
        if self.accelerator_type is not None:
            # Only a mark that the node must carry; it is not used up.
            bundle[self.accelerator_type] = 1e-4
        return bundle

    def share(self, device_name: str | None) -> dict[str, float]:
        """The part of a place that one worker gets."""
        # Ray counts in 1e-4; rounding down keeps the sum of the parts within the whole.
        return {
            name: math.floor(1e4 * amount / self.max_colocate_count) / 1e4
            for name, amount in self._bundle(device_name).items()
            if name != self.accelerator_type
        }

    def get_placement_groups(
        self, strategy: str = "STRICT_PACK", name: str | None = None, device_name: str | None = None
    ) -> list[PlacementGroup]:
        """Reserve the places, once; one placement group a node, in the order of the nodes' IPs.

        Raises:
            UserError: the cluster cannot provide them.
        """
        if self.pgs is None:
            bundle = self._bundle(device_name)
            groups = [
                placement_group(
                    bundles=[dict(bundle) for _ in range(count)],
                    strategy=strategy,
                    name=f"{name or self.name_prefix}:{node}",
                    lifetime="detached" if self.detached else None,
                )
                for node, count in enumerate(self.store)
            ]
            self._wait(groups, bundle)
            self.pgs = sort_placement_group_by_node_ip(groups)
        return self.pgs

    def _wait(self, groups: list[PlacementGroup], bundle: dict[str, float]) -> None:
        request = f"{self.store} workers a node with {bundle} each"
        reserved = [group.ready() for group in groups]
        _, missing = ray.wait(reserved, num_returns=len(groups), timeout=_PLACEMENT_NOTICE_S)
        if not missing:
            return
        logger.warning(
            "waiting for room for %s; free are %s of %s",
            request,
            ray.available_resources(),
            ray.cluster_resources(),
        )
        _, missing = ray.wait(reserved, num_returns=len(groups), timeout=_PLACEMENT_TIMEOUT_S)
        if missing:
            for group in groups:
                ray.util.remove_placement_group(group)
            raise UserError(
                f"cannot place {request} within {_PLACEMENT_TIMEOUT_S} s: free are "
                f"{ray.available_resources()} of {ray.cluster_resources()}; "
                "ask for fewer workers, free resources or add nodes"
            )

    def places(self, strategy: str, device_name: str | None) -> list[Place]:
        """All places in rank order."""
        bundles = []
        for group in self.get_placement_groups(strategy, device_name=device_name):
            nodes = placement_group_table(group)["bundles_to_node_id"]
            bundles += [(group, index, nodes[index]) for index in range(group.bundle_count)]
        bundles = self._own(bundles)
        size_of_node = Counter(node for _, _, node in bundles)
        next_rank: dict[str, int] = defaultdict(int)
        places = []
        for group, index, node in bundles:
            places.append(Place(group, index, node, next_rank[node], size_of_node[node]))
            next_rank[node] += 1
        return places

    def _own(self, bundles: list) -> list:
        return bundles


class SubRayResourcePool(RayResourcePool):
    """Consecutive places of another pool."""

    def __init__(self, parent: RayResourcePool, start_bundle_index: int, size: int) -> None:
        super().__init__(
            [size], parent.use_gpu, parent.name_prefix, parent.max_colocate_count, parent.detached
        )
        self._parent = parent
        self.start_bundle_index = start_bundle_index

    def get_placement_groups(
        self, strategy: str = "STRICT_PACK", name: str | None = None, device_name: str | None = None
    ) -> list[PlacementGroup]:
        """The placement groups of the whole pool."""
        return self._parent.get_placement_groups(strategy, name, device_name)

    def _own(self, bundles: list) -> list:
        return bundles[self.start_bundle_index :][: self.world_size]


def split_resource_pool(
    resource_pool: RayResourcePool, split_size: int | list[int]
) -> list[SubRayResourcePool]:
    """Cut a pool into parts of `split_size` places, or of the sizes listed.

    Raises:
        ValueError: the parts do not add up to the pool.
    """
    total = resource_pool.world_size
    sizes = split_size
    if isinstance(sizes, int):
        sizes = [sizes] * (total // sizes)
    if sum(sizes) != total:
        raise ValueError(f"parts of {split_size} do not add up to the pool's {total} places")
    offset, parent = 0, resource_pool
    if isinstance(resource_pool, SubRayResourcePool):
        offset, parent = resource_pool.start_bundle_index, resource_pool._parent
    starts = [offset, *(offset + end for end in accumulate(sizes))]
    return [
        SubRayResourcePool(parent, start, size) for start, size in zip(starts, sizes, strict=False)
    ]


def merge_resource_pool(rp1: RayResourcePool, rp2: RayResourcePool) -> RayResourcePool:
    """One pool of the places of two, reserved by them already or now.

    Raises:
        AssertionError: the pools offer different places.
    """
    for trait in ("use_gpu", "max_colocate_count", "detached"):
        ours, theirs = getattr(rp1, trait), getattr(rp2, trait)
        assert ours == theirs, f"cannot merge pools: {trait} is {ours} in one and {theirs} in other"
    merged = RayResourcePool(
        rp1.store + rp2.store,
        rp1.use_gpu,
        f"{rp1.name_prefix}_{rp2.name_prefix}",
        rp1.max_colocate_count,
        rp1.detached,
    )
    merged.pgs = rp1.get_placement_groups() + rp2.get_placement_groups()
    return merged


def extract_pg_from_exist(
    resource_pools: dict[str, RayResourcePool],
    src_role_names: list[str],
    resource_pool: RayResourcePool,
) -> list[PlacementGroup]:
    """Placement groups of the named pools, one that is large enough for each node of another pool.

    Raises:
        AssertionError: there are too few large ones.
    """
    largest_first = sorted(
        (pg for name in src_role_names for pg in resource_pools[name].get_placement_groups()),
        key=lambda pg: pg.bundle_count,
        reverse=True,
    )
    wanted = sorted(enumerate(resource_pool.store), key=lambda item: item[1], reverse=True)
    chosen: dict[int, PlacementGroup] = {}
    for (node, count), group in zip(wanted, largest_first, strict=False):
        assert group.bundle_count >= count, f"no placement group is left for {count} workers"
        chosen[node] = group
    assert len(chosen) == len(wanted), f"{len(wanted)} nodes wanted, {len(chosen)} groups found"
    return [chosen[node] for node in range(len(wanted))]


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
        return _ip_sort_key(ip_of_node[placement_group_table(group)["bundles_to_node_id"][0]])

    return sorted(groups, key=key)
