"""Backbones and other things with weights that more than one chapter uses."""
