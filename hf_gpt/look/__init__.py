"""What the book teaches with printed tensors and plots, seen on one's own model and one's own run.

`explain` and `explain_page`: a text's loss, token by token. `next_token` and `next_token_chart`: what decoding makes
of the next token. `report_page`: a run as a page, `comparison_page`: several beside each other; for both,
`overfitting` says where it begins, `run_pictures` which pictures there are, `report_figures` draws them, and
`report_html` puts the page together. `demo_answers` and `demo_html`: what the demo's page shows. The others
(`token_text`, `fonts`, `hover`, `wording`) are for all of them.
"""
