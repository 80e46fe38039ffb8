"""How a dialogue becomes text: ChatML, the format of Qwen's chat models.

    <|im_start|>role NEWLINE content <|im_end|> NEWLINE         for every turn

A dialogue that does not begin with a system turn is given SYSTEM as one. `{% generation %}` marks what a model is
trained to say (transformers' return_assistant_tokens_mask): the reply and the token that ends it.

Training data (tasks.tokenize.chat) and exports have this one text. It lies outside model/steel, whose import brings
torch: planning a run must not.
"""

DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SYSTEM = "You are a helpful assistant."

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '" + TURN_START + "system\\n" + SYSTEM + TURN_END + "\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '" + TURN_START + "' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '" + TURN_END + "' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '" + TURN_END + "\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN_START + "assistant\\n' }}{% endif %}"
)
