"""Weak labels that people drew."""
