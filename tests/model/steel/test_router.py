"""The linear router: its definition, that it starts as the cosine one does, and that it is not the default."""

import pytest
import torch

from model.steel import SteelConfig
from model.steel.soft_moe import SteelFFN
from tests.support.kinds import config, model


def ffn(router: str) -> SteelFFN:
    torch.manual_seed(0)
    layer = SteelFFN(config(router=router, hidden_size=64))
    with torch.no_grad():
        layer.phi.normal_(std=64**-0.5)
        layer.scale.fill_(3.0)
    return layer


def test_its_definition():
    layer, x = ffn("linear"), torch.randn(5, 64)
    torch.testing.assert_close(layer.logits(x), 3.0 * (x @ layer.phi) / 8.0)
    assert layer.logits(x.bfloat16()).dtype == torch.float32


def test_it_starts_as_the_cosine_one():
    """On what a norm gives, |x| = sqrt(d), and fresh columns of phi have about length 1."""
    x = torch.nn.functional.normalize(torch.randn(2000, 64), dim=-1) * 8.0
    linear, cosine = ffn("linear").logits(x), ffn("cosine").logits(x)
    assert (linear / cosine).median().item() == pytest.approx(1.0, abs=0.15)


def test_the_default_is_as_before():
    assert SteelConfig().router == "cosine"
    assert "router" not in SteelConfig().to_dict()
    assert SteelConfig.from_dict(SteelConfig(router="linear").to_dict()).router == "linear"
    with pytest.raises(ValueError, match="router: cubic is unknown"):
        SteelConfig(router="cubic")


@pytest.mark.parametrize("kind", ["token", "prefix", "merge"])
def test_every_routed_kind_takes_it(kind):
    ids = torch.arange(12)[None]
    lm = model(kind, router="linear")
    assert not torch.equal(lm(ids).logits, model(kind)(ids).logits)
    lm(ids, labels=ids).loss.backward()
    assert all(layer.mlp.phi.grad.abs().sum() > 0 for layer in lm.model.layers)
