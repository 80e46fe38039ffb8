"""What model.training.memory is asked, for a tiny model."""

from __future__ import annotations

from typing import Any

GEOMETRY = {"vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def question(ffn: str = "token", micro: int = 2, ranks: int = 2, **more: Any) -> dict[str, Any]:
    outside = {"length": 128, "documents": 4, "dpo": False, "limit": 1e12, "rows": [micro]}
    asked = {name: more.pop(name, value) for name, value in outside.items()}
    geometry = {**GEOMETRY, "ffn": ffn, "allow_future_leakage": True, **more.pop("model", {})}
    train = {
        "objective": "pretrain",
        "work_dir": "-",
        "model": geometry,
        "data": {"files": [{"path": "-"}]},
        "steps": 1,
        "batch_size": 64,
    }
    return {"train": train | more, "ranks": ranks, "micro": micro, **asked}
