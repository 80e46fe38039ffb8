"""The loss in the hands of transformers' Trainer, which counts the labels of a whole batch itself."""

import pytest
import torch

from model.steel import SteelForCausalLM
from tests.support import engine_helpers as tiny
from tests.support.tiny import byte_tokenizer, steel

ROWS, LENGTH = 8, 24


def rows() -> list[dict[str, list[int]]]:
    """Rows whose labels differ much in number: a mean of means is another one."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for row in range(ROWS):
        ids = torch.randint(0, 250, (LENGTH,), generator=draw).tolist()
        masked = (row * 5) % (LENGTH - 2)
        made.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return made


def tensors(part: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in part]) for key in ("input_ids", "labels")}


def gradients(lm: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in lm.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [int, torch.tensor])
def test_micro_batches_add_up_to_the_batch(micro, count):
    whole, parts = steel(), steel()
    batch = tensors(rows())
    mean = whole(**batch).loss
    mean.backward()
    items = count(int(batch["labels"][:, 1:].ne(-100).sum()))
    losses = []
    for start in range(0, ROWS, micro):
        part = tensors(rows()[start : start + micro])
        losses.append(parts(**part, num_items_in_batch=items).loss)
        losses[-1].backward()
    assert sum(losses).item() == pytest.approx(mean.item(), rel=1e-6)
    for a, b in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_labels_that_come_shifted_are_not_shifted_again():
    lm, batch = steel(), tensors(rows())
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert lm(**batch, shift_labels=shifted).loss == lm(**batch).loss


def train(lm: torch.nn.Module, folder, accumulation: int) -> tuple[list[float], torch.nn.Module]:
    from transformers import Trainer, TrainingArguments

    class Ordered(Trainer):
        def _get_train_sampler(self, *_):
            return None

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS // 2 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=3,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    trainer = Ordered(model=lm, args=arguments, train_dataset=rows())
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return [value for entry in logs for value in (entry["loss"], entry["grad_norm"])], lm


@pytest.mark.parametrize("code", ["ours", "exported"])
def test_the_trainer_gives_the_same_weights_with_and_without_accumulation(tmp_path, monkeypatch, code):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: make peers installs it")
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from model.training.export import write_export

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = steel(vocab_size=tiny.VOCAB)
    weights = {name: parameter.detach() for name, parameter in made.named_parameters()}
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_export(tmp_path / "export", made.config, weights, tmp_path / "tokenizer")

    def load():
        if code == "ours":
            return SteelForCausalLM.from_pretrained(tmp_path / "export")
        remote = get_class_from_dynamic_module("modeling.SteelForCausalLM", tmp_path / "export")
        assert remote.__module__.startswith("transformers_modules.")
        return remote.from_pretrained(tmp_path / "export")

    (once, a), (often, b) = (train(load(), tmp_path / str(n), n) for n in (1, 4))
    assert len(once) == 2 * 3 * 2
    assert often == pytest.approx(once, rel=1e-3)
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4, msg=name)
