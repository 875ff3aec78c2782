"""Healing: what went apart comes together again, and what was lost comes back."""
