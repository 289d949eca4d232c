"""Fixtures that several test files share."""

from yaml_files import sets, tiny

__all__ = ["sets", "tiny"]
