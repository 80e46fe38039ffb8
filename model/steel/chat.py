"""How a dialogue becomes text: ChatML, the format of Qwen's chat models.

    <|im_start|>role NEWLINE content <|im_end|> NEWLINE         for every turn

No system turn is added by itself. `{% generation %}` marks what a model is trained to say (transformers'
return_assistant_tokens_mask): the reply and the token that ends it.
"""

DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
