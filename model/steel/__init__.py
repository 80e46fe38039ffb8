"""The Steel model. Importing this package registers it with transformers' Auto classes."""

from model.guard import refuse_foreign_kernels

refuse_foreign_kernels()

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: E402

from model.steel.configuration import SteelConfig  # noqa: E402
from model.steel.modeling import SteelForCausalLM, SteelModel  # noqa: E402

AutoConfig.register("steel", SteelConfig, exist_ok=True)
AutoModel.register(SteelConfig, SteelModel, exist_ok=True)
AutoModelForCausalLM.register(SteelConfig, SteelForCausalLM, exist_ok=True)
# save_pretrained then copies the model's source beside the weights (trust_remote_code)
SteelConfig.register_for_auto_class()
SteelModel.register_for_auto_class("AutoModel")
SteelForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["SteelConfig", "SteelForCausalLM", "SteelModel"]
