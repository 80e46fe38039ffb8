"""Driving operators on plain batches gives what Data-Juicer's own `op.run` over a data set gives."""

import pytest

from tasks.clean import operators
from tasks.clean.chain import Chain
from tasks.clean.recipe import load_set
from tests.support.samples import real_text, record, shuffled

ODDITIES = [
    "<p>這是a&amp;b。</p>见http://a.example/b，后面。" + real_text(1),
    "# 标题\n// 注释\n\n" + real_text(2),
    "你好。" * 50,
    real_text(3) + "◆●" + "\u3000\u00a0\t" + real_text(3),
    "x@y.zz 10.0.0.1 １２３ ﬁ “引号”",
    shuffled(real_text(4), 4),
    "\\newcommand{\\a}{b}\n\\a 的意思。" + real_text(5),
    "短",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steel", "paper"])
def test_the_kept_texts_are_data_juicers(name, models):
    from data_juicer.core.data import NestedDataset
    from data_juicer.utils.constant import Fields

    texts = [*(real_text(seed) + "\n" + real_text(seed + 1) for seed in range(200)), *ODDITIES]
    steps = [
        s for s in load_set(name)["text"].steps if s.settings().get("lang", "zh") == "zh" and not s.min_chars
    ]
    rows = Chain("text", steps, models, 0).run(record(text) for text in texts)
    ours = [row.texts[0] for row in rows if not row.gone]

    data = NestedDataset.from_list([{"text": text, Fields.stats: {}} for text in texts])
    for step in steps:
        op = operators.load(step.operator, step.settings() | {"num_proc": 1}, models)
        data = op.run(data)
        if not step.is_filter:  # texts emptied by a mapper leave at once here, at the next filter there
            data = data.filter(lambda item: bool(item["text"].strip()), num_proc=1)
    assert ours == list(data["text"])
