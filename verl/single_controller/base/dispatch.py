"""How the arguments of one call are spread over the workers, and their results collected.

A dispatch function takes ``(worker_group, *args, **kwargs)`` and returns args and kwargs whose
values are lists with one entry a worker. A collect function takes ``(worker_group, outputs)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tensordict import TensorDict

from verl.protocol import DataProto, DataProtoFuture
from verl.single_controller.base.dynamic_enum import DynamicEnum
from verl.utils.batch_future import concat_batches

if TYPE_CHECKING:
    from verl.single_controller.base.worker_group import WorkerGroup

# The keyword in which a dispatch function reports how many rows it added to make chunks equal.
PADDING_SIZE_KEY = "_verl_padding_size"

Batch = DataProto | DataProtoFuture | TensorDict
DispatchResult = tuple[tuple, dict[str, Any]]


class Dispatch(DynamicEnum):
    """How arguments reach the workers and what comes back.

    ``ONE_TO_ALL``: everyone gets the same; a list of results.
    ``ALL_TO_ALL``: arguments are lists with one entry a worker; a list of results.
    ``RANK_ZERO``: arguments as they are, for methods that only rank 0 executes; its result.
    ``DP_COMPUTE``: as ``ALL_TO_ALL``, with the lengths checked.
    ``DP_COMPUTE_PROTO``: batches are chunked over the workers; results are concatenated.
    ``DP_COMPUTE_PROTO_WITH_FUNC``: the same after a first argument, a function, that all get.
    ``DP_COMPUTE_METRIC``: batches are chunked; a list of results.
    ``DIRECT_ROLLOUT_METHOD``: not callable through the group.
    """


class Execute(DynamicEnum):
    """Which workers run a method: ``ALL`` or ``RANK_ZERO``."""


for _name in (
    "RANK_ZERO",
    "ONE_TO_ALL",
    "ALL_TO_ALL",
    "DP_COMPUTE",
    "DP_COMPUTE_PROTO",
    "DP_COMPUTE_PROTO_WITH_FUNC",
    "DP_COMPUTE_METRIC",
    "DIRECT_ROLLOUT_METHOD",
):
    Dispatch.register(_name)
for _name in ("ALL", "RANK_ZERO"):
    Execute.register(_name)


# --- splitting batches --------------------------------------------------------------------------


def _padding_for(batches: list[Batch], chunks: int) -> int:
    """Rows that the batches lack; 0 unless padding is enabled for one of them."""
    padded = [b for b in batches if isinstance(b, DataProto) and b.is_padding_enabled()]
    if not padded:
        return 0
    lengths = {len(batch) for batch in batches if isinstance(batch, DataProto)}
    assert len(lengths) == 1, f"batches of {sorted(lengths)} rows cannot be padded alike"
    return -lengths.pop() % chunks


def _split(batch: Batch, chunks: int, padding: int) -> list[Batch]:
    assert isinstance(batch, Batch), (
        f"this method takes DataProto or TensorDict arguments, not {type(batch).__name__}"
    )
    if padding and isinstance(batch, DataProto):
        # A copy, so that the caller's batch keeps its length.
        batch = batch.select()
        batch.padding(padding)
    if isinstance(batch, TensorDict):
        rows = batch.batch_size[0]
        assert rows % chunks == 0, f"{rows} rows do not split into {chunks} equal chunks"
    return list(batch.chunk(chunks))


def split_batches(chunks: int, *args: Batch, **kwargs: Batch) -> DispatchResult:
    """Chunk every argument. Batches that enable padding are filled up first.

    Raises:
        AssertionError: an argument is not a batch, or does not split evenly and may not be padded.
    """
    padding = _padding_for([*args, *kwargs.values()], chunks)
    split_args = tuple(_split(arg, chunks, padding) for arg in args)
    split_kwargs = {key: _split(value, chunks, padding) for key, value in kwargs.items()}
    if padding:
        split_kwargs[PADDING_SIZE_KEY] = padding
    return split_args, split_kwargs


def _concat(outputs: list) -> Batch:
    """Join workers' batches; references to them become a future."""
    if isinstance(outputs[0], DataProto | TensorDict):
        return concat_batches(outputs)
    return DataProtoFuture.concat(outputs)


# --- the predefined modes -----------------------------------------------------------------------


def dispatch_one_to_all(worker_group: WorkerGroup, *args: Any, **kwargs: Any) -> DispatchResult:
    """The same object for every worker."""
    size = worker_group.world_size
    return tuple([arg] * size for arg in args), {key: [val] * size for key, val in kwargs.items()}


def dispatch_all_to_all(worker_group: WorkerGroup, *args: Any, **kwargs: Any) -> DispatchResult:
    """The caller has spread the arguments already."""
    return args, kwargs


def collect_all_to_all(worker_group: WorkerGroup, output: list) -> list:
    """The workers' results in rank order."""
    return output


def dispatch_dp_compute(worker_group: WorkerGroup, *args: Any, **kwargs: Any) -> DispatchResult:
    """As `dispatch_all_to_all`; asserts that each argument has one entry a worker."""
    for value in (*args, *kwargs.values()):
        assert isinstance(value, list | tuple) and len(value) == worker_group.world_size, (
            f"each argument must be a list of {worker_group.world_size} entries, one a worker"
        )
    return tuple(map(list, args)), {key: list(value) for key, value in kwargs.items()}


def dispatch_dp_compute_data_proto(
    worker_group: WorkerGroup, *args: Batch, **kwargs: Batch
) -> DispatchResult:
    """One chunk of every batch for each worker."""
    return split_batches(worker_group.world_size, *args, **kwargs)


def dispatch_dp_compute_data_proto_with_func(
    worker_group: WorkerGroup, func: Callable, *args: Batch, **kwargs: Batch
) -> DispatchResult:
    """The function for all, and one chunk of every batch for each worker."""
    split_args, split_kwargs = split_batches(worker_group.world_size, *args, **kwargs)
    return ([func] * worker_group.world_size, *split_args), split_kwargs


def collect_dp_compute_data_proto(worker_group: WorkerGroup, output: list) -> Batch:
    """All workers' rows in rank order."""
    return _concat(output)


def dispatch_forbidden(worker_group: WorkerGroup, *args: Any, **kwargs: Any) -> DispatchResult:
    """Refuse a method that engines call on their workers by themselves."""
    raise NotImplementedError("this method is called by the rollout engine, not through the group")


# --- meshes: several workers a chunk ------------------------------------------------------------


def dispatch_nd_compute_data_proto(
    mesh_name: str, worker_group: WorkerGroup, *args: Batch, **kwargs: Batch
) -> DispatchResult:
    """Each worker gets the chunk of its data-parallel rank in the mesh."""
    dp_ranks = worker_group.dispatch_info(mesh_name)
    split_args, split_kwargs = split_batches(max(dp_ranks) + 1, *args, **kwargs)
    padding = split_kwargs.pop(PADDING_SIZE_KEY, 0)
    spread_args = tuple([chunks[rank] for rank in dp_ranks] for chunks in split_args)
    spread_kwargs: dict[str, Any] = {
        key: [chunks[rank] for rank in dp_ranks] for key, chunks in split_kwargs.items()
    }
    if padding:
        spread_kwargs[PADDING_SIZE_KEY] = padding
    return spread_args, spread_kwargs


def collect_nd_compute_data_proto(mesh_name: str, worker_group: WorkerGroup, output: list) -> Batch:
    """The rows of the workers that speak for their data-parallel rank."""
    speaks = worker_group.collect_info(mesh_name)
    return _concat([part for part, keep in zip(output, speaks, strict=True) if keep])


def make_nd_compute_dataproto_dispatch_fn(mesh_name: str) -> dict[str, Callable]:
    """A dispatch mode for methods that work on the mesh `mesh_name`.

    The workers declare their place in it with ``_register_dispatch_collect_info``.
    """
    return {
        "dispatch_fn": partial(dispatch_nd_compute_data_proto, mesh_name),
        "collect_fn": partial(collect_nd_compute_data_proto, mesh_name),
    }


# --- the table ----------------------------------------------------------------------------------


def _mode(dispatch_fn: Callable, collect_fn: Callable) -> dict[str, Callable]:
    return {"dispatch_fn": dispatch_fn, "collect_fn": collect_fn}


DISPATCH_MODE_FN_REGISTRY: dict[DynamicEnum, dict[str, Callable]] = {
    Dispatch.RANK_ZERO: _mode(dispatch_all_to_all, collect_all_to_all),
    Dispatch.ONE_TO_ALL: _mode(dispatch_one_to_all, collect_all_to_all),
    Dispatch.ALL_TO_ALL: _mode(dispatch_all_to_all, collect_all_to_all),
    Dispatch.DP_COMPUTE: _mode(dispatch_dp_compute, collect_all_to_all),
    Dispatch.DP_COMPUTE_PROTO: _mode(dispatch_dp_compute_data_proto, collect_dp_compute_data_proto),
    Dispatch.DP_COMPUTE_PROTO_WITH_FUNC: _mode(
        dispatch_dp_compute_data_proto_with_func, collect_dp_compute_data_proto
    ),
    Dispatch.DP_COMPUTE_METRIC: _mode(dispatch_dp_compute_data_proto, collect_all_to_all),
    Dispatch.DIRECT_ROLLOUT_METHOD: _mode(dispatch_forbidden, dispatch_forbidden),
}


def get_predefined_dispatch_fn(dispatch_mode: DynamicEnum) -> dict[str, Callable]:
    """``{"dispatch_fn": ..., "collect_fn": ...}`` of a mode."""
    return DISPATCH_MODE_FN_REGISTRY[dispatch_mode]


def register_dispatch_mode(
    dispatch_mode_name: str, dispatch_fn: Callable, collect_fn: Callable
) -> None:
    """Add a mode, usable as ``Dispatch.<NAME>``.

    Raises:
        ValueError: the name is taken.
    """
    mode = Dispatch.register(dispatch_mode_name)
    DISPATCH_MODE_FN_REGISTRY[mode] = _mode(dispatch_fn, collect_fn)


def update_dispatch_mode(
    dispatch_mode: DynamicEnum, dispatch_fn: Callable, collect_fn: Callable
) -> None:
    """Replace both functions of a mode."""
    DISPATCH_MODE_FN_REGISTRY[dispatch_mode] = _mode(dispatch_fn, collect_fn)


def get_predefined_execute_fn(execute_mode: DynamicEnum) -> dict[str, str]:
    """``{"execute_fn_name": ...}``: the method of a worker group that runs the mode."""
    return {"execute_fn_name": f"execute_{execute_mode.name.lower()}"}
