"""Frozen networks that turn pictures or sound into feature rows."""
