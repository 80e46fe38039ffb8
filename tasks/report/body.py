"""One self-contained page, the same numbers for machines, and a model card.

Writes report.html, summary.json, model_card.md and figures/*.svg. `tasks.figures.latest.publish_latest`, called
outside the artifact when the flow run has ended, adds the stages' states and links the newest report of a profile.
"""

from __future__ import annotations

import json

from tasks.figures import history
from tasks.settings.config import PipelineRecipe
from tasks.stage.node import Context, Outcome
from tasks.work import pool


def report(ctx: Context) -> Outcome:
    """Assemble the numbers, let the last model speak, write everything."""
    from tasks.report import model_card, page, samples, view

    recipe: PipelineRecipe = ctx.config
    prompts, replies, model = list(recipe.report.generations), [], ""
    final = history.final_export(ctx.inputs)
    if final and prompts:
        model, export = final
        chat = model != "base" and recipe.evaluate.chat
        job = pool.submit(
            samples.generate, str(export), prompts, recipe.report.max_new_tokens, chat, ctx.runtime.device
        )
    ctx.progress(0.1, "reading the run")
    seen = view.assemble(recipe, ctx.inputs)
    if final and prompts:
        ctx.progress(0.5, "sample generations")
        replies = [view.Sample(p, r) for p, r in zip(prompts, job.result(), strict=True)]
    seen = view.with_samples(seen, model, replies)

    ctx.progress(0.7, "drawing")
    drawings = page.draw(seen)
    (ctx.out / "figures").mkdir(exist_ok=True)
    for name, svg in drawings.items():
        (ctx.out / "figures" / f"{name}.svg").write_text(svg, "utf-8")
    (ctx.out / "report.html").write_text(page.render(seen, drawings), "utf-8")
    numbers = seen.summary()
    text = json.dumps(numbers, ensure_ascii=False, indent=1, allow_nan=False)
    (ctx.out / "summary.json").write_text(text + "\n", "utf-8")
    (ctx.out / "model_card.md").write_text(model_card.write(seen), "utf-8")
    return Outcome(
        headline=page.headline(seen),
        counts={
            "records_in": seen.total.records_in,
            "records_kept": seen.total.kept,
            "scores": len(seen.benchmarks),
        },
        summary=seen.lead(),
        files=["report.html", "summary.json", "model_card.md"],
    )
