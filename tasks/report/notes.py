"""How the numbers were made, and what they do not say: the caveats under the report and model card."""

from __future__ import annotations

from tasks.download.names import few
from tasks.report.view import View

PROTOCOLS = {
    "cloze": (
        "cloze: the model is asked the question alone, and each option's text is scored by its log-probability "
        "divided by its number of tokens; the likeliest option is the answer. No letters are involved."
    ),
    "paper-first-token": (
        "paper-first-token: question and lettered options in the paper's prompt; the answer is the likeliest of "
        "A, B, C, D as the first token of the reply. It is the deterministic twin of the paper's greedy generation "
        "with a regular expression behind it, not the same protocol."
    ),
    "options-only": (
        "options-only: the same scoring with the question removed. What a model still gets right it guesses from "
        "the options; it is a control, not a score."
    ),
}


def caveats(view: View) -> list[str]:
    """One sentence or two each; only what concerns this run."""
    notes = [PROTOCOLS[p] for p in dict.fromkeys(r["protocol"] for r in view.benchmarks) if p in PROTOCOLS]
    if view.benchmarks:
        if view.config.evaluate.chat:
            notes.append(
                "Tuned models are asked in the chat template, the untrained and the base model plainly: "
                "each in the form it was trained on."
            )
        notes.append(
            "Accuracy is over questions. Intervals are Wilson's at 95 % and treat questions as independent draws; "
            "several questions about one fact are not quite that. They say nothing about another seed: this is one run."
        )
    if view.ablation:
        notes.append(
            "The p-values of the ablation are exact McNemar tests on the same questions, not corrected for their number. "
            "The variant for DPO was chosen on a split of its own, never on the reported one."
        )
    if view.curves:
        notes.append(
            "Losses are nats per token of this run's tokenizer and cannot be compared across tokenizers. "
            "Bold curves are running means over about a fortieth of the run; faint ones are as logged."
        )
    if view.unigram is not None:
        notes.append(
            "The unigram line counts tokens of the training blocks (one added to each) and is scored on the validation blocks."
        )
    if any(source.hub == "demo" for source in view.config.sources.values()):
        notes.append(
            "The data are a small generated world of real facts in many wordings. A high score shows that the "
            "pipeline works and the model learnt these facts; it says nothing about general knowledge."
        )
    if view.total.skipped:
        steps = "; ".join(f"{operator} ({reason})" for operator, reason in view.total.skipped.items())
        notes.append(f"These steps of the cleaning recipes could not run: {steps}.")
    idle = [f"{f.source}: {few(f.idle, 5, f.idle_total)}" for f in view.funnels if f.idle]
    if idle:
        notes.append(f"Files that brought no record: {'; '.join(idle)}.")
    if view.funnels:
        notes.append(
            "Characters are those of readable records: what was quarantined has none that could be counted."
        )
    notes.append(
        "Seconds of a stage are summed over its nodes, which may have run side by side; for a reused node they are "
        "those of the run that made it."
    )
    return notes
