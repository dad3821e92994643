"""Training: the loop, and what belongs to it. README.md in this folder lists the files."""
