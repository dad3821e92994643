"""Training: the loop, and what belongs to it. README.md in this folder says where what is."""
