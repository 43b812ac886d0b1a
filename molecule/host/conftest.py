"""Lets the tests of this scenario import what they share: pytest puts the directory of a conftest on the path."""
