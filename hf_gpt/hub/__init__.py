"""Publish models on the Hub, and resume runs from there (see README.md in this folder)."""
