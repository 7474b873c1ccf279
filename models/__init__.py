"""Learnable pooling, gating and experts: from feature rows to label scores."""
