"""The trainer's configuration: one dataclass a group is the schema, the defaults and the documentation."""
