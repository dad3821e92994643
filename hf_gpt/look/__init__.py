"""What the book teaches with printed tensors, seen on one's own model: a text's loss, and the next token's choice."""
