"""Nature, calendar, measures and numbers."""

from tasks.world.tables import rows

# animal, class: four each
ANIMALS = rows("""
蝙蝠  哺乳动物
老虎  哺乳动物
大象  哺乳动物
海豚  哺乳动物
企鹅  鸟类
麻雀  鸟类
鸽子  鸟类
燕子  鸟类
乌龟  爬行动物
鳄鱼  爬行动物
壁虎  爬行动物
蜥蜴  爬行动物
青蛙  两栖动物
蟾蜍  两栖动物
蝾螈  两栖动物
牛蛙  两栖动物
海马  鱼类
泥鳅  鱼类
黄鳝  鱼类
鲨  鱼类
蜜蜂  昆虫
蝴蝶  昆虫
蚂蚁  昆虫
蜻蜓  昆虫
""")

FESTIVALS = rows("""
春节  正月初一
元宵节  正月十五
端午节  五月初五
七夕节  七月初七
中秋节  八月十五
重阳节  九月初九
腊八节  腊月初八
元旦  一月一日
情人节  二月十四日
妇女节  三月八日
植树节  三月十二日
世界水日  三月二十二日
愚人节  四月一日
世界地球日  四月二十二日
世界读书日  四月二十三日
劳动节  五月一日
青年节  五月四日
护士节  五月十二日
儿童节  六月一日
世界环境日  六月五日
建党节  七月一日
建军节  八月一日
教师节  九月十日
国庆节  十月一日
记者节  十一月八日
圣诞节  十二月二十五日
""")

# solar term, season: six each
TERMS = rows("""
立春  春季
雨水  春季
惊蛰  春季
春分  春季
清明  春季
谷雨  春季
立夏  夏季
小满  夏季
芒种  夏季
夏至  夏季
小暑  夏季
大暑  夏季
立秋  秋季
处暑  秋季
白露  秋季
秋分  秋季
寒露  秋季
霜降  秋季
立冬  冬季
小雪  冬季
大雪  冬季
冬至  冬季
小寒  冬季
大寒  冬季
""")

# unit, symbol, quantity
UNITS = rows("""
米  m  长度
千克  kg  质量
秒  s  时间
安培  A  电流
摩尔  mol  物质的量
坎德拉  cd  发光强度
焦耳  J  能量
帕斯卡  Pa  压强
赫兹  Hz  频率
特斯拉  T  磁感应强度
韦伯  Wb  磁通量
流明  lm  光通量
勒克斯  lx  光照度
欧姆  Ω  电阻
弧度  rad  平面角
球面度  sr  立体角
升  L  容积
戈瑞  Gy  吸收剂量
希沃特  Sv  剂量当量
贝克勒尔  Bq  放射性活度
公顷  ha  土地面积
分贝  dB  声级
""")

# whole numbers whose squares have three digits
SQUARES = [[str(n), str(n * n)] for n in range(11, 32)]
