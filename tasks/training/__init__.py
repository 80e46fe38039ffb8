"""The trained stages: pretrain, sft and dpo, and the engine that runs them."""
