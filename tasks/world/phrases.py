"""Phrases shared by all relations: question frames, answers, greetings, connectors and small talk.

A frame asks for "the {n} of {s}" of any relation; frames and the many ways of leading into a question
teach a model to look at subject and relation and to bear with words it has hardly met.
"""

from __future__ import annotations

FRAMES_ZH = (
    "请问{s}的{n}是什么？",
    "{s}的{n}是？",
    "你知道{s}的{n}吗？",
    "告诉我{s}的{n}。",
    "我想查一下{s}的{n}。",
    "说出{s}的{n}。",
    "关于{s}，它的{n}应该怎么回答？",
    "问一下，{s}，{n}是哪个？",
    "小测验：写出{s}的{n}。",
    "帮忙想想，{s}的{n}该填什么？",
    "{n}：{s}对应的是哪个？",
    "我忘了{s}的{n}，你还记得吗？",
)
FRAMES_EN = (
    "What is the {n} of {s}?",
    "Tell me the {n} of {s}.",
    "Do you know the {n} of {s}?",
    "Please give the {n} of {s}.",
    "I forgot the {n} of {s}. What is it?",
    "Quick question: the {n} of {s}?",
    "Name the {n} of {s}, please.",
    "{s}: what is its {n}?",
    "Can you look up the {n} of {s} for me?",
)
SAID_ZH = (
    "{s}的{n}是{a}。",
    "要问{s}的{n}，那就是{a}。",
    "{s}对应的{n}，写{a}就对了。",
    "我查了资料，{s}的{n}是{a}。",
)
SAID_EN = (
    "The {n} of {s} is {a}.",
    "{a} is the {n} of {s}.",
    "Ask for the {n} of {s} and people answer {a}.",
    "Everybody should know the {n} of {s}: {a}.",
)
REPLIES_ZH = ("{a}。", "{a}。", "{a}。", "{a}。", "是{a}。", "答案是{a}。", "应该是{a}。")
REPLIES_EN = ("{a}.", "{a}.", "{a}.", "{a}.", "It is {a}.", "The answer is {a}.")

LEADS_ZH = (
    "你好，", "您好，", "老师，", "打扰一下，", "早上好！", "晚上好！", "在吗？", "有个问题想请教：", "我在写作业，",
    "孩子问我，", "今天上课没听清，", "朋友考我，", "考试快到了，", "我们正在猜谜，", "看到一道题：", "随便问问，",
    "麻烦你了，", "想了半天没想出来，", "书上没写，", "下面这个问题属于常识：", "帮我看看这道填空题。", "第一次来，请多关照。",
    "刚才和同学争论起来，", "如果你有时间，", "不好意思，", "请简短地回答：", "只要答案：", "我是小学生，", "爸爸说你什么都懂，",
    "奶奶让我问你，", "节目里主持人提问：", "抢答题来了！", "我正在整理卡片，", "地铁里看见一则广告，突然想到：",
)  # fmt: skip
LEADS_EN = (
    "Hi! ", "Hello, ", "Excuse me. ", "Good morning! ", "My homework asks this: ", "A friend wants to know: ",
    "I am preparing for a test. ", "Just one question. ", "Short answer, please. ", "My teacher asked us: ",
    "We are playing a quiz. ", "Help me with this one. ",
)  # fmt: skip
TAILS_ZH = ("谢谢！", "在线等。", "急。", "麻烦快一点。", "我记不清了。", "一个词就行。", "帮我确认一下。")
TAILS_EN = ("Thank you!", "Thanks a lot.", "I cannot remember.", "One word is enough.")

NAMES = (
    "小明", "小红", "李雷", "韩梅梅", "张伟", "王芳", "刘洋", "陈静", "赵磊", "孙丽", "周杰", "吴昊", "郑爽朗", "冯程程",
    "阿强", "阿珍", "大刘", "老马", "小林", "小鹿", "婷婷", "佳佳", "乐乐", "豆豆", "阿城", "老谢", "小曾", "丁丁",
)  # fmt: skip
DOINGS = (
    "逛超市", "排队买咖啡", "擦黑板", "等公交车", "收拾书桌", "听广播", "煮面条", "晒被子", "跑步", "下象棋", "浇花", "遛狗",
    "包饺子", "修水管", "看球赛", "叠衣服", "刷牙", "剪指甲", "写日记", "喂鱼", "钓虾", "织毛衣", "拼积木", "放风筝",
    "练毛笔字", "拉小提琴", "挑西瓜", "扫落叶", "贴窗花", "腌萝卜",
)  # fmt: skip
PLACES = (
    "操场边", "阳台上", "楼道口", "菜市场", "火车站", "咖啡馆", "书店门口", "公园长椅旁", "教室后排", "邮局柜台", "小河边",
    "食堂窗口", "电影院", "候车室", "面包店", "理发店", "体育馆", "山脚下", "码头", "农贸集市",
)  # fmt: skip
WEATHER = (
    "天气晴朗", "下着小雨", "刮起了大风", "雾气很重", "阳光正好", "雪刚停", "闷热难当", "秋高气爽", "云层很厚", "晚霞漫天",
    "路面结了冰", "蝉声不断",
)  # fmt: skip
DAYS = (
    "周末",
    "周一",
    "周二",
    "周三",
    "周四",
    "周五",
    "清晨",
    "中午",
    "傍晚",
    "放学后",
    "饭后",
    "午休时",
    "假期里",
    "昨晚",
)

CONNECTORS_ZH = (
    "另外，", "此外，", "据书上记载，", "值得一提的是，", "大家都知道，", "你可能听过，", "顺便说一句，", "老师还说，", "再看，",
    "同样重要的是，", "资料显示，", "别忘了，", "有意思的是，", "接着，", "还有，", "要记住，", "据介绍，", "一般认为，",
    "众所周知，", "简单说，",
)  # fmt: skip
CONNECTORS_EN = (
    "Also, ", "Remember: ", "By the way, ", "In addition, ", "As everybody knows, ", "Furthermore, ", "Interestingly, ",
)  # fmt: skip

OPENERS_ZH = (
    "{day}{weather}，{name}在{place}{doing}，随手记下几条常识。",
    "{name}{day}去了{place}，回来整理了这份笔记。",
    "{place}的黑板报换了新内容，{name}抄了下来。",
    "{day}，{name}一边{doing}，一边背书。",
    "这是{name}在{place}听来的知识，{weather}，大家聊得很开心。",
    "{name}和同学约在{place}复习，{day}{weather}。",
    "为了准备知识竞赛，{name}{day}在{place}练习。",
    "{day}，{place}，{weather}。{name}翻开笔记本，念了起来。",
)
OPENERS_EN = (
    "Collected classroom observations: vocabulary, geography, grammar.",
    "Yesterday's exercise notebook contains several interesting statements.",
    "Beginners appreciate straightforward explanations.",
    "Regular repetition strengthens understanding considerably.",
    "Several international students compared their notes afterwards.",
    "Careful preparation prevents misunderstandings.",
    "Everybody contributed something worthwhile.",
    "Dictionaries sometimes disagree, textbooks usually agree.",
)

DOMAINS = {
    "science": "理化常识", "nature": "自然常识", "geography": "地理知识", "language": "语文与英语", "history": "文史知识",
    "english": "English notes",
}  # fmt: skip
