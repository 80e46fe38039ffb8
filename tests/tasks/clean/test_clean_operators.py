"""Data-Juicer made safe: no installer, no downloads, models from one folder."""

import pytest

from tasks.clean import operators
from tasks.settings.errors import NodeError
from tests.support.samples import real_text, shuffled


def test_the_run_time_installer_is_denied():
    operators.prepare()
    from data_juicer.utils.lazy_loader import LazyLoader

    absent = LazyLoader("no_such_module_of_steel", "no-such-package-of-steel")
    with pytest.raises(ImportError, match="asked to install"):
        absent.anything  # noqa: B018


def test_a_model_comes_from_the_given_folder_only(models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)  # Data-Juicer itself would take zh.sp.model from here
    with pytest.raises(NodeError, match=r"needs the model zh\.sp\.model"):
        operators.load("perplexity_filter", {"lang": "zh", "max_ppl": 1}, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert operators.load("perplexity_filter", {"lang": "zh", "max_ppl": 1}, models)


def test_operators_with_other_models_cannot_be_reached():
    operators.prepare()
    from data_juicer.utils.model_utils import prepare_model

    with pytest.raises(AssertionError):
        prepare_model(model_type="spacy", lang="zh")


def test_two_folders_of_models_do_not_mix(models, tmp_path):
    """A worker process cleans with the models of one run after those of another."""
    from tasks.clean.assets import train_language

    other = sorted({shuffled(real_text(seed), seed // 300) for seed in range(900)})
    assert train_language("zh", other, tmp_path, vocab_size=400, order=2)["chars"]
    first = operators.load("perplexity_filter", {"lang": "zh", "max_ppl": 1e9}, models)
    second = operators.load("perplexity_filter", {"lang": "zh", "max_ppl": 1e9}, tmp_path)
    stats = []
    for op in (first, second, first):
        batch = op.compute_stats_batched(
            {"text": ["小学生在院子里种了三棵苹果树，这让他感到非常高兴。"], "__dj__stats__": [{}]}
        )
        stats.append(batch["__dj__stats__"][0]["perplexity"])
    assert stats[0] == stats[2] < stats[1]
