"""The configuration: the dataclasses are schema, defaults and documentation in one."""
