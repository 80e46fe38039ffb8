"""The report stage: one self-contained page, the same numbers for machines, and a model card.

The node reads every other node of the run and writes report.html, summary.json, model_card.md and
figures/*.svg. `latest.publish_latest`, called outside the artifact when the flow run has ended, adds
the stages' states and links the newest report of a profile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tasks.figures.latest import publish_latest
from tasks.settings.config import SteelRun
from tasks.stage.node import Context, Node, Outcome

__all__ = ["nodes", "publish_latest", "report"]


def nodes(config: SteelRun, names: Iterable[str]) -> list[Node]:
    """The one node; `names` are all other nodes of the run, each an input under its own name."""
    return [
        Node(
            name="report",
            body=report,
            config=config.model_dump(mode="json", exclude={"runtime", "ablation"}),
            inputs={name: name for name in names},
            code=(
                "tasks.report",
                "tasks.figures",
                "tasks.evaluate.statistics",
                "model.scoring",
                "model.chat_template",
                "model.tokenizer",
            ),
        )
    ]


def report(ctx: Context) -> Outcome:
    """Assemble the numbers, let the last model speak, write everything."""
    from tasks.figures import history
    from tasks.report import model_card, page, samples, view
    from tasks.work import pool

    config = SteelRun.model_validate(dict(ctx.config))
    prompts, replies, model = list(config.report.generations), [], ""
    final = history.final_export(ctx.inputs)
    if final and prompts:
        model, export = final
        chat = model != "base" and config.evaluate.chat
        job = pool.submit(
            samples.generate, str(export), prompts, config.report.max_new_tokens, chat, ctx.runtime.device
        )
    ctx.progress(0.1, "reading the run")
    seen = view.assemble(config, ctx.inputs)
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
