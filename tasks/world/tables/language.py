"""Words: opposites and translations; English verbs and opposites."""

from tasks.world.tables import rows

# word, opposite, English
OPPOSITES = rows("""
快乐  悲伤  happy
勇敢  胆小  brave
聪明  愚笨  clever
美丽  丑陋  beautiful
富有  贫穷  rich
安静  吵闹  quiet
干净  肮脏  clean
温暖  寒冷  warm
光明  黑暗  bright
简单  复杂  simple
困难  容易  difficult
危险  安全  dangerous
勤劳  懒惰  diligent
诚实  虚伪  honest
强壮  虚弱  strong
新鲜  腐烂  fresh
年轻  衰老  young
陌生  熟悉  strange
真实  虚假  real
公开  秘密  public
成功  失败  success
前进  后退  advance
喜欢  讨厌  like
柔软  坚硬  soft
粗糙  光滑  rough
干燥  潮湿  dry
拥挤  宽敞  crowded
节约  浪费  save
""")

# English word, Chinese: fruit, planets, colours, places, people, things
WORDS = rows("""
apple  苹果
banana  香蕉
tomato  番茄
potato  土豆
Mercury  水星
Venus  金星
Mars  火星
Jupiter  木星
Saturn  土星
bridge  桥梁
library  图书馆
hospital  医院
kitchen  厨房
window  窗户
umbrella  雨伞
bicycle  自行车
camera  照相机
purple  紫色
green  绿色
yellow  黄色
mountain  山脉
island  岛屿
desert  沙漠
forest  森林
music  音乐
spider  蜘蛛
""")

# verb, past tense, past participle
VERBS_EN = rows("""
go  went  gone
see  saw  seen
eat  ate  eaten
take  took  taken
give  gave  given
write  wrote  written
break  broke  broken
speak  spoke  spoken
drive  drove  driven
know  knew  known
grow  grew  grown
fly  flew  flown
draw  drew  drawn
sing  sang  sung
swim  swam  swum
drink  drank  drunk
ride  rode  ridden
rise  rose  risen
fall  fell  fallen
wear  wore  worn
choose  chose  chosen
freeze  froze  frozen
steal  stole  stolen
hide  hid  hidden
shake  shook  shaken
throw  threw  thrown
""")

OPPOSITES_EN = rows("""
hot  cold
big  small
tall  short
fast  slow
early  late
open  closed
full  empty
heavy  light
up  down
inside  outside
day  night
black  white
buy  sell
love  hate
win  lose
push  pull
sweet  bitter
thick  thin
deep  shallow
true  false
north  south
east  west
summer  winter
ancient  modern
asleep  awake
friend  enemy
""")
