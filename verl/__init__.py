"""A compact RL trainer in the style and API of verl.

Importing it stays light: no Ray, vLLM or transformers.
"""

from verl.protocol import DataProto

__version__ = "0.1.0"

__all__ = ["DataProto", "__version__"]
