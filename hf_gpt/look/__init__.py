"""What the book teaches with printed tensors and plots, seen on one's own model and one's own run.

`explain` and `explain_page`: a text's loss, token by token. `next_token` and `next_token_chart`: what decoding makes
of the next token. `report_page`, `report_figures` and `overfitting`: a run, or several beside each other, as a page.
"""
