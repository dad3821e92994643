"""Text to batches in three steps: corpus (where text comes from), tokens (the store), batches (what a step sees)."""
