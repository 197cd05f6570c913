"""The value function's update."""
