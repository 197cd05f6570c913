"""The batch that every part of the trainer passes on, and how it is merged and sent."""

from verl.protocol.batch import DataProto, pad_dataproto_to_divisor, unpad_dataproto
from verl.protocol.merge import union_numpy_dict, union_tensor_dict

__all__ = [
    "DataProto",
    "pad_dataproto_to_divisor",
    "union_numpy_dict",
    "union_tensor_dict",
    "unpad_dataproto",
]
