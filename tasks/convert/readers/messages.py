"""Any dialogues given as lists of turns, in the forms of OpenAI and ShareGPT (_conversation.py tells them).

Option `field` names the list where it is called otherwise. A list may also be a string of JSON, as in tables.
"""

from tasks.convert.formats import TABLE_SUFFIXES, table_items
from tasks.convert.readers import Options, Reader
from tasks.convert.readers._conversation import conversation, whole
from tasks.convert.verdicts import dialogue


class MessagesOptions(Options):
    field: str = ""
    """Empty: conversations, messages, conversation, dialog, dialogue, turns or chat."""


def convert(item, options, file):
    return dialogue(*whole(conversation(item, options.field)))


READER = Reader(convert, makes="sft", items=table_items, suffixes=TABLE_SUFFIXES, options=MessagesOptions)
