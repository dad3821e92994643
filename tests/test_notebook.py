"""What results show of themselves: a short line as their repr, and in a notebook what a person wants to see."""

import re

import pytest

import hf_gpt
from hf_gpt.estimate.forecast import estimate
from hf_gpt.explain.decoding import compare, distribution, next_token_logits
from hf_gpt.explain.scores import explain
from hf_gpt.replay import replay


@pytest.fixture
def run(tiny):
    tiny["evaluation"]["prompts"] = ["Line <b>"]
    return hf_gpt.train(tiny)


def test_results_are_short_and_show_themselves(run, tiny, tmp_path):
    folder, text, out = str(run.output_dir), tiny["data"]["source"], str(tmp_path / "out")
    logits = next_token_logits(run.model, run.tokenizer, "Line")
    evaluation = hf_gpt.evaluate_corpus(folder, text, tokens=50)
    expected = [
        (run, "TrainingResult(RUN, step N, best on validation text: step-N)", "sample     after step 12:"),
        (evaluation, "Evaluation(loss N, perplexity N, N bits per byte, N tokens scored)", "49 tokens scored"),
        (hf_gpt.to_gpt2(folder, out), "Conversion(OUT: GPT2LMHeadModel, N parameters, float32)", "logits agree to"),
        (estimate(run.recipe, measure=False), "Estimate(N parameters, N MiB, N steps)", "  feed-forward"),
        (explain(run.model, run.tokenizer, "Line"), "Explanation(N tokens, loss N, perplexity N)", "cross_entropy"),
        (compare(logits, str, "Line"), "Decoding(N tokens at temperature N, N, N, N draws each)", "T=0.1"),
        (distribution(logits, 2.0, 5), "NextToken(temperature N, top-k N, top-p None: N of N tokens kept)", "of 257 "),
        (hf_gpt.read_run(folder), "RunRecord(RUN, step N, N checkpoints kept)", "step 12"),
        (replay(folder), "Replayed(N steps repeated; N of the N recorded ones match)", "4 steps repeated; 4 of the 4"),
    ]
    for result, short, full in expected:
        shown = repr(result).replace(folder, "RUN").replace(out, "OUT")
        assert re.sub(r"(?<![A-Za-z0-9])\d+(,\d{3})*(\.\d+)?", "N", shown) == short
        assert result._repr_html_().startswith("<pre>")
        assert full in result._repr_html_()


def test_a_run_shows_its_last_sample_and_its_losses(run):
    page = run._repr_html_()
    assert "Line &lt;b&gt;" in page
    assert '<img src="data:image/png;base64,' in page
    (run.output_dir / "loss.png").unlink()
    assert "<img" not in run._repr_html_()
