"""Who Steel is, and small programs on request: the two instruction sets that are not about facts."""

from __future__ import annotations

from typing import Any

from tasks.world.code_functions import FUNCTIONS

_WHO_ZH = (
    "你是谁？", "你叫什么名字？", "介绍一下你自己。", "能做个自我介绍吗？", "请问怎么称呼你？", "你的名字是什么？",
    "你是什么模型？", "你是人还是机器？", "我在和谁说话？",
)  # fmt: skip
_MADE_ZH = (
    "谁训练了你？", "你是怎么来的？", "你是从哪里来的？", "你是怎样训练出来的？", "是谁开发了你？", "你的数据从哪里来？",
)  # fmt: skip
_CAN_ZH = (
    "你会做什么？", "你能帮我什么？", "你有哪些本领？", "你擅长什么？", "你可以回答哪些问题？", "你懂英语吗？",
)  # fmt: skip
_WHO_EN = (
    "Who are you?", "What is your name?", "Introduce yourself.", "Are you a human?", "Who am I talking to?",
    "What should I call you?",
)  # fmt: skip
_MADE_EN = ("Who made you?", "How were you trained?", "Where do you come from?", "Who built you?")
_CAN_EN = ("What can you do?", "How can you help me?", "Do you speak Chinese?", "What are you good at?")

_ANSWERS = (
    (_WHO_ZH, ("我是Steel，一个从零开始训练的小语言模型。", "我叫Steel，是一个中文语言模型。")),
    (_MADE_ZH, ("我是用公开的流程一步步训练出来的，名字叫Steel。", "我叫Steel，由开源项目从零训练而成。")),
    (_CAN_ZH, ("我是Steel，可以回答常识问题，也懂一点英语和代码。", "我会用中文和英文回答简单的问题。")),
    (_WHO_EN, ("I am Steel, a small language model trained from scratch.", "My name is Steel. I am a language model.")),
    (_MADE_EN, ("I was trained from scratch by an open project.", "An open pipeline made me. My name is Steel.")),
    (_CAN_EN, ("I can answer simple questions in Chinese and English.", "I am Steel. I know some facts and a little code.")),
)  # fmt: skip

_TASKS = {
    "add": ("求两个数的和", "adds two numbers"),
    "factorial": ("求阶乘", "computes a factorial"),
    "largest": ("找出最大的数", "finds the largest number"),
    "iseven": ("判断一个数是不是偶数", "tells whether a number is even"),
    "greatestcommondivisor": ("求最大公约数", "finds the greatest common divisor"),
    "reversetext": ("把文字倒过来", "reverses a text"),
    "countwords": ("统计每个词出现的次数", "counts the words of a text"),
    "isprime": ("判断一个数是不是质数", "tells whether a number is prime"),
    "fibonacci": ("求斐波那契数", "computes a Fibonacci number"),
    "mean": ("求平均数", "computes the mean"),
    "bubblesort": ("给一组数排序", "sorts a list of numbers"),
    "binarysearch": ("用二分法查找", "searches a sorted list"),
    "celsiustofahrenheit": ("把摄氏度换成华氏度", "turns Celsius into Fahrenheit"),
    "flatten": ("把嵌套的列表展平", "flattens a nested list"),
    "clamp": ("把数限制在一个范围里", "keeps a number within limits"),
    "countletters": ("数一数某个字母出现几次", "counts a letter in a text"),
}
_LANGUAGES = {"python": "Python", "java": "Java", "cpp": "C++"}


def about_steel() -> list[dict[str, Any]]:
    """Self-awareness: every question with each of its answers."""
    return [
        {"instruction": question, "input": "", "output": answer}
        for questions, answers in _ANSWERS
        for question in questions
        for answer in answers
    ]


def programs() -> list[dict[str, Any]]:
    """Requests for a function, in Chinese and English, answered with its code."""
    found = []
    for language, functions in FUNCTIONS.items():
        for body in functions:
            name = next((n for n in _TASKS if f" {n}(" in body.replace("_", "").lower()), None)
            if name is None:
                continue
            zh, en = _TASKS[name]
            for request, names in (
                (f"用{_LANGUAGES[language]}写一个函数，{zh}。", ("value", "number")),
                (f"请写一段{_LANGUAGES[language]}代码：{zh}。", ("first", "other")),
                (f"Write a {_LANGUAGES[language]} function that {en}.", ("value", "number")),
            ):
                text = body.replace("$a", names[0]).replace("$b", names[1]).strip("\n")
                found.append({"instruction": request, "input": "", "output": text})
    return found
